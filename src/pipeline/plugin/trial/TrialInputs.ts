/** Inputs for a stage on trial: artifacts that a small fixture pipeline makes, once, in a runs folder of its own. */
import { Effect, Schema } from "effect"
import { type ArtifactHandle } from "../../../artifacts/Artifact.ts"
import { handleOf } from "../../../artifacts/ArtifactStore.ts"
import { plan, willRun } from "../../plan/Plan.ts"
import type { Edge, ResolvedPipeline, ResolvedStage } from "../../file/ResolvedPipeline.ts"
import { run } from "../../run/Runner.ts"
import type { AnyStageType } from "../../StageType.ts"

/** The fixture cannot give what the stage takes. */
export class FixtureLacking extends Schema.TaggedError<FixtureLacking>()("FixtureLacking", {
  message: Schema.String,
  next: Schema.String
}) {}

/** The fixture's own stage of this type: its parameters and edges are what the type is tested with. */
export const stageOfType = (fixture: ResolvedPipeline, type: AnyStageType): ResolvedStage | undefined =>
  fixture.stages.find(({ type: other }) => other.name === type.name && other.plugin?.code === type.plugin?.code)

/** For every port that must be joined, the first output of the fixture with its artifact type. */
export const edgesByType = Effect.fnUntraced(function* (fixture: ResolvedPipeline, type: AnyStageType) {
  const edges: Record<string, ReadonlyArray<Edge>> = {}
  for (const [name, port] of Object.entries(type.inputs)) {
    if (port.optional === true) continue
    const source = fixture.stages.flatMap((stage) =>
      Object.entries(stage.type.outputs).flatMap(([output, made]) =>
        made.type === port.type ? [{ stage: stage.name, port: output }] : []
      )
    )[0]
    if (source === undefined) {
      return yield* new FixtureLacking({
        message: `${type.name} takes ${port.type} (${name}), and no stage of ${fixture.file} makes that`,
        next: "write a folder with a pipeline.yaml whose stages make it, and name that folder with --fixture"
      })
    }
    edges[name] = [source]
  }
  return edges
})

/** Makes what is not there yet of the stages that `edges` need, and gives their artifacts. `onWork` hears which stages run. */
export const makeInputs = Effect.fn("makeInputs")(function* (
  fixture: ResolvedPipeline,
  edges: Readonly<Record<string, ReadonlyArray<Edge>>>,
  onWork: (stages: ReadonlyArray<string>) => Effect.Effect<void>
) {
  const only = closure(fixture, new Set(Object.values(edges).flatMap((all) => all.map(({ stage }) => stage))))
  if (only.length === 0) return {}
  let planned = yield* plan(fixture, { only }, { estimates: false })
  const missing = planned.stages.filter(willRun).map(({ stage }) => stage)
  if (missing.length > 0) {
    yield* onWork(missing)
    const summary = yield* run(fixture, { only })
    const failed = summary.stages.find(({ failure }) => failure !== undefined)
    if (failed?.failure !== undefined) {
      return yield* new FixtureLacking({
        message: `the fixture's stage ${failed.stage} failed: ${failed.failure.message}`,
        next: failed.failure.next
      })
    }
    planned = yield* plan(fixture, { only }, { estimates: false })
  }
  const inputs: Record<string, ReadonlyArray<ArtifactHandle>> = {}
  for (const [name, all] of Object.entries(edges)) {
    inputs[name] = all.flatMap(({ port, stage }) => {
      const decision = planned.decisions.get(stage)
      const artifact = decision?._tag === "Use" ? decision.artifacts[port] : undefined
      return artifact === undefined ? [] : [handleOf(artifact, `${stage}.${port}`)]
    })
    if (inputs[name]?.length !== all.length) {
      return yield* new FixtureLacking({
        message: `${fixture.file} made no ${all.map(({ port, stage }) => `${stage}.${port}`).join(", ")}`,
        next: `look at it alone: tinyllama run ${fixture.file}`
      })
    }
  }
  return inputs
})

const closure = (fixture: ResolvedPipeline, wanted: ReadonlySet<string>): ReadonlyArray<string> => {
  const reached = new Set(wanted)
  // Needs come before a stage in topological order, so one pass from the end reaches everything.
  for (const stage of fixture.stages.toReversed()) {
    if (reached.has(stage.name)) for (const need of stage.needs) reached.add(need)
  }
  return fixture.stages.map(({ name }) => name).filter((name) => reached.has(name))
}
