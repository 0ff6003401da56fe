/** Which stages a command asks for, and what that makes of each stage. */
import { Result, Runtime, Schema } from "effect"
import { StageNames } from "../file/Matrix.ts"
import type { ResolvedPipeline } from "../file/ResolvedPipeline.ts"

export interface Selection {
  /** Reruns this stage and all below; upstream, the newest complete artifacts serve, whatever the file now says of them. */
  readonly fromStage?: string
  /** Nothing but this stage and what it needs. */
  readonly toStage?: string
  /** These stages alone; upstream as with `fromStage`. */
  readonly only?: ReadonlyArray<string>
  /** Rerun even if a complete result exists; "all" stands for every selected stage. */
  readonly force?: ReadonlyArray<string>
  /** Results of stages above serve even where the file has changed since; without it a run refuses them. */
  readonly reuseStale?: boolean
}

/** The command asks for something that the pipeline has not, say an unknown stage in --from-stage. Exit code 2. */
export class UsageError extends Schema.TaggedError<UsageError>()("UsageError", { message: Schema.String }) {
  override readonly [Runtime.errorExitCode] = 2
}

/** run: brought up to date; reuse: taken as it is; excluded: neither selected nor needed. */
export type Role = "run" | "reuse" | "excluded"

export interface Roles {
  readonly of: (stage: string) => Role
  readonly forced: (stage: string) => boolean
}

export const resolveSelection = (
  pipeline: ResolvedPipeline,
  selection: Selection
): Result.Result<Roles, UsageError> => {
  const names = pipeline.stages.map((stage) => stage.name)
  const force = selection.force ?? []
  const asked: ReadonlyArray<readonly [string, string | undefined]> = [
    ["--from-stage", selection.fromStage],
    ["--to-stage", selection.toStage],
    ...(selection.only ?? []).map((name) => ["--only", name] as const),
    ...force.filter((name) => name !== "all").map((name) => ["--force", name] as const)
  ]
  const known = new StageNames(pipeline.stages)
  const named = new Map<string, ReadonlyArray<string>>()
  for (const [option, name] of asked) {
    if (name === undefined) continue
    const found = known.find(name)
    if (Result.isSuccess(found)) {
      named.set(name, found.success)
      continue
    }
    const { message, suggestion, unknown } = found.failure
    const hint =
      suggestion !== undefined
        ? `; did you mean "${suggestion}"?`
        : unknown
          ? `; stages are ${known.candidates.join(", ")}`
          : ""
    const fault = unknown ? "no such stage" : message
    return Result.fail(new UsageError({ message: `${option} ${name}: ${fault} in ${pipeline.file}${hint}` }))
  }
  /** The stages that a name stands for: all instances of a matrix for the name of its block. */
  const stagesOf = (...written: ReadonlyArray<string>) => written.flatMap((name) => named.get(name) ?? [])

  let running = new Set(names)
  if (selection.fromStage !== undefined) running = closure(pipeline, stagesOf(selection.fromStage), "below")
  if (selection.toStage !== undefined)
    running = common(running, closure(pipeline, stagesOf(selection.toStage), "above"))
  if (selection.only !== undefined && selection.only.length > 0)
    running = common(running, new Set(stagesOf(...selection.only)))
  if (running.size === 0) {
    return Result.fail(new UsageError({ message: "the options together select no stage; leave one of them out" }))
  }
  const needed = closure(pipeline, running, "above")
  const forced = new Set(force.includes("all") || selection.fromStage !== undefined ? running : stagesOf(...force))
  return Result.succeed({
    of: (stage) => (running.has(stage) ? "run" : needed.has(stage) ? "reuse" : "excluded"),
    forced: (stage) => running.has(stage) && forced.has(stage)
  })
}

const common = (a: ReadonlySet<string>, b: ReadonlySet<string>) => new Set(Array.from(a).filter((name) => b.has(name)))

/** The stages and all that feed them, or all that they feed. */
const closure = (pipeline: ResolvedPipeline, start: Iterable<string>, direction: "above" | "below"): Set<string> => {
  const reached = new Set(start)
  // Needs come before a stage in topological order, so one pass in the right direction reaches everything.
  const stages = direction === "below" ? pipeline.stages : pipeline.stages.toReversed()
  for (const stage of stages) {
    if (direction === "below" && stage.needs.some((need) => reached.has(need))) reached.add(stage.name)
    if (direction === "above" && reached.has(stage.name)) for (const need of stage.needs) reached.add(need)
  }
  return reached
}
