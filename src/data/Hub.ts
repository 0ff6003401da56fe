/**
 * Files of a hub repository. `/api/{datasets,models}/{id}/revision/{revision}` tells the commit, so that all files are of one, whatever is pushed
 * meanwhile; the listing is `/api/{datasets,models}/{id}/tree/{commit}?recursive=true`, in pages joined by Link headers (RFC 8288); a file is
 * `{datasets/,}{id}/resolve/{commit}/{path}`, which sends large ones on to another host, without the token. Large files carry their sha256 in the
 * listing, others git's blob id; both are checked.
 */
import { matchesGlob } from "node:path"
import { Config, Effect, Option, Redacted, Schema } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { askForText, type Explain, explainPlain, type Session } from "./HttpTransport.ts"

export const publicEndpoint = "https://huggingface.co"

/** Where the hub is and who asks: the endpoint from the parameter, else HF_ENDPOINT, else the public hub; the token from a variable. */
export interface Access {
  readonly endpoint: string
  /** Sent to the endpoint only; never logged. */
  readonly headers: Readonly<Record<string, string>>
  /** Name of the variable that holds the token, or would. */
  readonly token: string
}

export const defaultToken = "HF_TOKEN"

export const access = (endpoint: string | null, token = defaultToken): Effect.Effect<Access, StageError> =>
  Config.all({
    endpoint: Config.String("HF_ENDPOINT").pipe(Config.withDefault(publicEndpoint)),
    token: Config.option(Config.Redacted(token))
  }).pipe(
    Effect.map((found) => ({
      endpoint: (endpoint ?? found.endpoint).replace(/\/+$/u, ""),
      headers: Option.match(found.token, {
        onNone: () => ({}),
        onSome: (value) => ({ authorization: `Bearer ${Redacted.value(value)}` })
      }),
      token
    })),
    Effect.mapError(
      (error) =>
        new StageError({
          failure: "invalid-input",
          message: `the environment: ${error.message}`,
          next: `correct HF_ENDPOINT and ${token}, or unset them`
        })
    )
  )

export const accessHint = (token = defaultToken): string =>
  `set ${token} to the token of an account that may read this repository (and has accepted its terms); where the file names it under secrets, this stage must name it too`

/** What a hub's refusals mean: it tells more in X-Error-Code and X-Error-Message than by the status. */
export const explain =
  ({ endpoint, headers: proof, token }: Access, repository: Repository): Explain =>
  (status, headers) => {
    const { id, revision, type } = repository
    const code = headers["x-error-code"]
    const said = headers["x-error-message"]
    const page = `${endpoint}/${type === "dataset" ? "datasets/" : ""}${id}`
    const withToken = "authorization" in proof
    if (code === "GatedRepo" || (status === 403 && code === undefined))
      return {
        cause: `no access: ${said ?? "the repository is gated, or closed to this account"}`,
        next: withToken ? `accept the terms at ${page} with the account that ${token} is of` : accessHint(token)
      }
    if (status === 401 && withToken)
      return {
        cause: `no access: ${said ?? `the token in ${token} is not taken`}`,
        next: `the token has expired or was revoked: make a new one at ${endpoint}/settings/tokens, and set ${token} to it`
      }
    if (status === 401) return { cause: "no access", next: accessHint(token) }
    if (code === "RevisionNotFound")
      return { cause: `${id} has no revision ${revision}`, next: `see ${page}/tree/main for its branches and tags` }
    if (code === "EntryNotFound") return { cause: "the file is not in this revision", next: `see ${page}` }
    if (code === "RepoNotFound" || status === 404)
      return {
        cause: `no ${type} ${id}, or not for this account`,
        next: `check the name at ${page}${withToken ? "" : `; if it is private, ${accessHint(token)}`}`
      }
    return explainPlain(status, headers)
  }

export interface Repository {
  readonly id: string
  readonly revision: string
  readonly type: "dataset" | "model"
}

export interface HubFile {
  readonly path: string
  readonly bytes: number
  readonly url: string
  /** Of large files. */
  readonly sha256: string | undefined
  /** Git's id of the content, of other files. */
  readonly gitBlob: string | undefined
}

const TreeEntry = Schema.Struct({
  type: Schema.String,
  path: Schema.String,
  oid: Schema.optionalKey(Schema.String),
  size: Schema.optionalKey(Schema.Int),
  lfs: Schema.optionalKey(Schema.NullOr(Schema.Struct({ oid: Schema.String, size: Schema.optionalKey(Schema.Int) })))
})
const Tree = Schema.fromJsonString(Schema.Array(TreeEntry))
const Revision = Schema.fromJsonString(Schema.Struct({ sha: Schema.String }))

/** The target of rel="next", moved to the endpoint: a mirror may link to the original, and the token goes to the endpoint alone. */
const nextPage = (link: string | undefined, current: string, endpoint: string): string | undefined => {
  const target = /<([^>]*)>\s*;[^,]*\brel="?next"?/.exec(link ?? "")?.[1]
  if (target === undefined) return undefined
  const { pathname, search } = new URL(target, current)
  return new URL(endpoint).origin + pathname + search
}

const encodePath = (path: string): string => path.split("/").map(encodeURIComponent).join("/")

const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/u.test(revision)

/** The repository's files that match `include` and not `exclude`, sorted by path, and the commit that they are of. */
export const list = Effect.fn("Hub.list")(function* (
  session: Session,
  repository: Repository,
  include: ReadonlyArray<string>,
  exclude: ReadonlyArray<string>,
  place: string,
  access: Access
) {
  const { endpoint, headers } = access
  const page = <S extends Schema.Codec<unknown, string>>(url: string, schema: S) =>
    Effect.gen(function* () {
      const answer = yield* askForText(session, {
        url,
        place,
        headers: { accept: "application/json" },
        authorize: () => Effect.succeed(headers),
        explain: explain(access, repository)
      })
      const body = yield* Schema.decodeEffect(schema)(answer.text).pipe(Effect.mapError(notAHub(place, endpoint)))
      return { body, link: answer.headers["link"] }
    })
  const api = `${endpoint}/api/${repository.type}s/${repository.id}`
  const named = encodeURIComponent(repository.revision)
  const commit = isCommit(repository.revision)
    ? repository.revision
    : (yield* page(`${api}/revision/${named}`, Revision)).body.sha
  const found: Array<typeof TreeEntry.Type> = []
  let next: string | undefined = `${api}/tree/${encodeURIComponent(commit)}?recursive=true`
  while (next !== undefined) {
    const current: string = next
    const { body, link } = yield* page(current, Tree)
    found.push(...body)
    next = nextPage(link, current, endpoint)
  }
  const home = `${endpoint}/${repository.type === "dataset" ? "datasets/" : ""}${repository.id}`
  const files = found
    .filter(({ path, type }) => type === "file" && include.some((glob) => matchesGlob(path, glob)))
    .filter(({ path }) => !exclude.some((glob) => matchesGlob(path, glob)))
    .toSorted((a, b) => (a.path < b.path ? -1 : 1))
    .map(({ lfs, oid, path, size }): HubFile => ({
      path,
      bytes: lfs?.size ?? size ?? 0,
      url: `${home}/resolve/${encodeURIComponent(commit)}/${encodePath(path)}`,
      sha256: lfs?.oid,
      gitBlob: lfs === undefined || lfs === null ? oid : undefined
    }))
  if (files.length > 0) return { commit, files }
  const examples = found
    .filter(({ type }) => type === "file")
    .slice(0, 5)
    .map(({ path }) => path)
  return yield* new StageError({
    failure: "invalid-input",
    message: `${place}: no file matches ${include.join(", ")}${exclude.length === 0 ? "" : ` without ${exclude.join(", ")}`} among ${found.length} entries`,
    next: `the repository has, for example: ${examples.join(", ") || "nothing"}`
  })
})

const notAHub = (place: string, endpoint: string) => (error: { readonly message: string }) =>
  new StageError({
    failure: "network",
    message: `${place}: the listing is not what a hub sends: ${error.message}`,
    next: `check that ${endpoint} is a hub endpoint`
  })
