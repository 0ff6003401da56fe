/** Sources on the network: whether a failed connection is tried again, whether the hub lets this account in, and under which licence. */
import { Effect, Result, Schema } from "effect"
import { HttpClient } from "effect/http"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Hub from "../../data/Hub.ts"
import { hubSourceOf } from "../../data/Sources.ts"
import type { Finding, Rule } from "../../pipeline/plan/Preflight.ts"
import type { downloadStage } from "../Download.ts"
import { missing, ok, stageRule, stagesOf, type Verdict, warning } from "./StageRule.ts"

export const retries = stageRule<typeof downloadStage>("download", "retries", ({ params, stage }) => {
  if (params.sources.every(({ path }) => path !== undefined)) return undefined
  return stage.retry.times === 0 || !stage.retry.for.includes("network")
    ? warning(
        "a connection that fails is not tried again",
        "give retry at least one time, and network among the classes it is for"
      )
    : ok(`a connection that fails is tried again, ${stage.retry.times} times`)
})

/** Asks the hub about every repository: is it there, is it open to this account, what is its licence. */
export const access: Rule = {
  cost: "thorough",
  check: Effect.fnUntraced(function* (context) {
    const { pipeline } = context
    const named = new Set([...pipeline.secrets, ...pipeline.stages.flatMap(({ secrets }) => secrets)])
    const questions = stagesOf<typeof downloadStage>(context, "download").flatMap(({ params, stage }) =>
      params.sources.flatMap((source) => {
        const hub = hubSourceOf(source)
        return hub === undefined
          ? []
          : [
              {
                stage: stage.name,
                endpoint: params.endpoint,
                repository: hub.repository,
                token: params.token,
                withheld: named.has(params.token) && !stage.secrets.includes(params.token)
              }
            ]
      })
    )
    return yield* Effect.forEach(
      questions,
      (question) =>
        Effect.map(ask(question), (verdict): Finding => ({ subject: "hub", stage: question.stage, ...verdict })),
      { concurrency: 4 }
    )
  })
}

interface Question {
  readonly endpoint: string | null
  readonly repository: Hub.Repository
  readonly token: string
  /** The token is a secret of other stages, so that this one does not get it. */
  readonly withheld: boolean
}

/** What a hub says of a repository, as far as it matters here. */
const About = Schema.Struct({
  gated: Schema.optionalKey(Schema.Union([Schema.Boolean, Schema.String])),
  cardData: Schema.optionalKey(
    Schema.NullOr(
      Schema.Struct({ license: Schema.optionalKey(Schema.Union([Schema.String, Schema.Array(Schema.String)])) })
    )
  )
})

/** A hub that takes longer is as good as not there. */
const patience = "10 seconds"

const ask = Effect.fnUntraced(function* ({ endpoint, repository, token, withheld }: Question) {
  const { id, revision, type } = repository
  const found = yield* Effect.result(Hub.access(endpoint, token))
  if (Result.isFailure(found)) return missing(found.failure.message, found.failure.next)
  const access = found.success
  const headers = withheld ? {} : access.headers
  const hasToken = "authorization" in headers
  const api = `${access.endpoint}/api/${type}s/${id}`
  const about = yield* Effect.result(get(`${api}/revision/${encodeURIComponent(revision)}`, headers))
  if (Result.isFailure(about))
    return warning(
      `${id}: ${access.endpoint} cannot be reached: ${about.failure}`,
      "check the connection, or HF_ENDPOINT"
    )
  const { body, status } = about.success
  const tokenStep = withheld
    ? `${token} is named as a secret of other stages only: add it to "secrets" of this one`
    : Hub.accessHint(token)
  if (status === 401 || status === 403 || (status === 404 && !hasToken))
    return missing(
      `${id} at ${revision} is not there, or not open to ${hasToken ? "this token's account" : "everybody"} (the hub answers ${status})`,
      `check the name and the revision; else ${tokenStep}`
    )
  if (status !== 200)
    return status === 404
      ? missing(`${id} has no revision ${revision} that this account may see`, "check the name and the revision")
      : warning(`${id}: the hub answers ${status}`, "try again later")
  const decoded = yield* Effect.option(Schema.decodeUnknownEffect(Schema.fromJsonString(About))(body))
  if (decoded._tag === "None")
    return warning(`${id}: what the hub says of it cannot be read`, "check that HF_ENDPOINT is a hub")
  const { cardData, gated = false } = decoded.value
  const licence = [cardData?.license ?? []].flat().join(", ")
  if (gated !== false && gated !== "false") {
    if (!hasToken) return missing(`${id} is gated: it wants an account that has accepted its terms`, tokenStep)
    const allowed = yield* Effect.result(get(`${api}/auth-check`, headers))
    if (Result.isSuccess(allowed) && (allowed.success.status === 401 || allowed.success.status === 403))
      return missing(`${id} is gated, and ${token}'s account has not been let in`, tokenStep)
  }
  return licence === ""
    ? warning(`${id} can be read; it declares no licence`, "read its card before you publish what is made of it")
    : ok(`${id} can be read; licence: ${licence}`)
}) satisfies (question: Question) => Effect.Effect<Verdict, never, HttpClient.HttpClient>

const get = (url: string, headers: Readonly<Record<string, string>>) =>
  Effect.gen(function* () {
    const client = yield* HttpClient.HttpClient
    const request = HttpClientRequest.get(url, { headers: { ...headers, accept: "application/json" } })
    const response: HttpClientResponse.HttpClientResponse = yield* HttpClient.followRedirects(client).execute(request)
    return { status: response.status, body: yield* response.text }
  }).pipe(
    Effect.mapError((error) => (error.cause instanceof Error ? error.cause.message : "the connection failed")),
    Effect.timeoutOrElse({ duration: patience, orElse: () => Effect.fail(`no answer within ${patience}`) })
  )
