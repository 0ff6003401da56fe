/** What a run takes from outside: files that stages observe, secrets from the environment. */
import { Effect, Result } from "effect"
import type { Finding, PreflightContext } from "../Preflight.ts"
import { readSecrets } from "../../file/Secrets.ts"

/** What `observe` said when the plan was made: a missing file is known before anything runs. */
export const observations = ({ plan, stages }: PreflightContext): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.succeed(
    stages.flatMap(({ stage, willRun }): ReadonlyArray<Finding> => {
      const observed = plan.observed.get(stage.name)
      // A result that is taken as it is asks nothing of this machine.
      if (!willRun && observed !== undefined && Result.isFailure(observed)) return []
      if (observed === undefined || stage.type.observe === undefined) return []
      const about = { subject: "files", stage: stage.name }
      if (Result.isFailure(observed)) {
        const { message, next } = observed.failure
        return [{ ...about, state: "missing", detail: message, next }]
      }
      return [{ ...about, state: "ok", detail: "everything that it reads from this machine is there" }]
    })
  )

export const secrets = Effect.fnUntraced(function* ({ pipeline, stages }: PreflightContext) {
  const running = stages.filter(({ willRun }) => willRun).map(({ stage }) => stage)
  const named = new Set(running.flatMap((stage) => stage.secrets))
  if (named.size === 0) return []
  const read = yield* Effect.result(readSecrets(pipeline, running))
  if (Result.isSuccess(read)) {
    return [{ subject: "secrets", state: "ok", detail: `${Array.from(named).join(", ")} set` } satisfies Finding]
  }
  return read.failure.problems.map((problem): Finding => {
    const [detail = "", next] = problem.split(". Next: ")
    return { subject: "secrets", state: "missing", detail, ...(next === undefined ? {} : { next }) }
  })
})
