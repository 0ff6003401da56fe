/** Metrics that an earlier report has already: of the same model, by digest, on the same task from the same artifact. */
import { Effect, FileSystem, Option, Path, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { Report } from "./Report.ts"
import type { Metrics } from "./Task.ts"

export type EarlierScores = (asked: {
  /** Digest of the model. */
  readonly model: string
  readonly task: string
  /** Digest of the artifact that the task comes from. */
  readonly source: string
}) => Metrics | undefined

export const noScores: EarlierScores = () => undefined

const decodeReport = Schema.decodeUnknownOption(Schema.fromJsonString(Report))

/** The scores of an EvalReport artifact; none when it cannot be read. */
export const readEarlierScores = Effect.fn("EarlierScores.read")(function* (report: ArtifactHandle) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const text = yield* Effect.orElseSucceed(fs.readFileString(path.join(report.folder, "report.json")), () => "")
  return Option.match(decodeReport(text), {
    onNone: () => noScores,
    onSome:
      ({ models, tasks }): EarlierScores =>
      ({ model, source, task }) =>
        tasks.some(({ digest, name }) => name === task && digest === source)
          ? models.find(({ digest }) => digest === model)?.tasks[task]
          : undefined
  })
})
