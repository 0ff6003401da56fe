/**
 * Files of a hub repository. The listing is `/api/{datasets,models}/{id}/tree/{revision}?recursive=true`, in pages joined by Link headers (RFC 8288);
 * a file is `{datasets/,}{id}/resolve/{revision}/{path}`. Large files carry their sha256 in the listing, and it is checked.
 */
import { matchesGlob } from "node:path"
import { Config, Effect, Option, Redacted, Schema } from "effect"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import { StageError } from "../pipeline/StageType.ts"
import { patientClient, requestFailed, statusFailure } from "./HttpDownload.ts"

export const publicEndpoint = "https://huggingface.co"

/** Where the hub is and who asks: the endpoint from the parameter, else HF_ENDPOINT, else the public hub; the token from HF_TOKEN. */
export interface Access {
  readonly endpoint: string
  /** Sent to the endpoint only; never logged. */
  readonly headers: Readonly<Record<string, string>>
}

export const access = (endpoint: string | null): Effect.Effect<Access, StageError> =>
  Config.all({
    endpoint: Config.String("HF_ENDPOINT").pipe(Config.withDefault(publicEndpoint)),
    token: Config.option(Config.Redacted("HF_TOKEN"))
  }).pipe(
    Effect.map((found) => ({
      endpoint: (endpoint ?? found.endpoint).replace(/\/+$/, ""),
      headers: Option.match(found.token, {
        onNone: () => ({}),
        onSome: (token) => ({ authorization: `Bearer ${Redacted.value(token)}` })
      })
    })),
    Effect.mapError(
      (error) =>
        new StageError({
          failure: "invalid-input",
          message: `the environment: ${error.message}`,
          next: "correct HF_ENDPOINT and HF_TOKEN, or unset them"
        })
    )
  )

export const accessHint =
  "set HF_TOKEN to the token of an account that may read this repository (and has accepted its terms); where the file names it under secrets, this stage must name it too"

export interface Repository {
  readonly id: string
  readonly revision: string
  readonly type: "dataset" | "model"
}

export interface HubFile {
  readonly path: string
  readonly bytes: number
  readonly url: string
  readonly sha256: string | undefined
}

const TreeEntry = Schema.Struct({
  type: Schema.String,
  path: Schema.String,
  size: Schema.optionalKey(Schema.Int),
  lfs: Schema.optionalKey(Schema.Struct({ oid: Schema.String }))
})
const Tree = Schema.Array(TreeEntry)

/** The target of rel="next", moved to the endpoint: a mirror may link to the original, and the token goes to the endpoint alone. */
const nextPage = (link: string | undefined, current: string, endpoint: string): string | undefined => {
  const target = /<([^>]*)>\s*;[^,]*\brel="?next"?/.exec(link ?? "")?.[1]
  if (target === undefined) return undefined
  const { pathname, search } = new URL(target, current)
  return new URL(endpoint).origin + pathname + search
}

const encodePath = (path: string): string => path.split("/").map(encodeURIComponent).join("/")

/** The repository's files that match `include` and not `exclude`, sorted by path. */
export const list = Effect.fn("Hub.list")(function* (
  repository: Repository,
  include: ReadonlyArray<string>,
  exclude: ReadonlyArray<string>,
  place: string,
  { endpoint, headers }: Access
) {
  const client = yield* patientClient
  const revision = encodeURIComponent(repository.revision)
  const found: Array<typeof TreeEntry.Type> = []
  let page: string | undefined = `${endpoint}/api/${repository.type}s/${repository.id}/tree/${revision}?recursive=true`
  while (page !== undefined) {
    const current: string = page
    const response = yield* client
      .execute(HttpClientRequest.get(current, { headers: { ...headers, accept: "application/json" } }))
      .pipe(Effect.mapError(requestFailed(place)))
    if (response.status !== 200) return yield* statusFailure(place, response.status, accessHint)
    const entries = yield* HttpClientResponse.schemaBodyJson(Tree)(response).pipe(
      Effect.mapError(
        (error) =>
          new StageError({
            failure: "network",
            message: `${place}: the listing is not what a hub sends: ${error.message}`,
            next: `check that ${endpoint} is a hub endpoint`
          })
      )
    )
    found.push(...entries)
    page = nextPage(response.headers["link"], current, endpoint)
  }
  const files = found
    .filter(({ type, path }) => type === "file" && include.some((glob) => matchesGlob(path, glob)))
    .filter(({ path }) => !exclude.some((glob) => matchesGlob(path, glob)))
    .sort((a, b) => (a.path < b.path ? -1 : 1))
    .map(({ path, size, lfs }): HubFile => ({
      path,
      bytes: size ?? 0,
      url: `${endpoint}/${repository.type === "dataset" ? "datasets/" : ""}${repository.id}/resolve/${revision}/${encodePath(path)}`,
      sha256: lfs?.oid
    }))
  if (files.length === 0)
    return yield* new StageError({
      failure: "invalid-input",
      message: `${place}: no file matches ${include.join(", ")} among ${found.length} entries`,
      next: `the repository has, for example: ${
        found
          .slice(0, 5)
          .map(({ path }) => path)
          .join(", ") || "nothing"
      }`
    })
  return files
})
