/** What would be submitted, and whether Slurm would take it: asked of the controller itself, without submitting anything. */
import { tmpdir } from "node:os"
import { Effect, FileSystem, Path } from "effect"
import type { SlurmOptions } from "../../file/ExecutorBlock.ts"
import type { ResolvedStage } from "../../file/ResolvedPipeline.ts"
import { directives } from "../../run/slurm/SlurmScript.ts"
import type { SlurmQueueShape } from "../../run/slurm/SlurmQueue.ts"
import type { Examined, Finding, PreflightContext } from "../Preflight.ts"

type OnSlurm = Examined & { readonly stage: ResolvedStage & { readonly executor: SlurmOptions } }

/** Stages whose attempts become jobs: light ones run in the runner whatever the executor. */
const onSlurm = (one: Examined): one is OnSlurm =>
  one.willRun && one.stage.executor.kind === "slurm" && one.stage.type.runsIn !== "runner"

const subject = "Slurm"

export const slurm = ({ stages }: PreflightContext) =>
  Effect.gen(function* () {
    const asking = stages.filter(onSlurm)
    if (asking.length === 0) return []
    const { makeQueue } = yield* Effect.promise(() => import("../../run/slurm/SlurmQueue.ts"))
    const queue = makeQueue()
    const reached = yield* Effect.result(queue.clusterName)
    if (reached._tag === "Failure") {
      const { message, next } = reached.failure
      const names = asking.map(({ stage }) => stage.name).join(", ")
      return [{ subject, state: "missing", detail: `${names}: ${message}`, next } satisfies Finding]
    }
    return yield* Effect.forEach(asking, ({ stage }) => asked(queue, stage), { concurrency: 4 })
  })

const asked = (queue: SlurmQueueShape, stage: OnSlurm["stage"]) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const lines = wanted(stage)
    const script = ["#!/bin/bash", ...lines.map((line) => `#SBATCH ${line}`), "true", ""].join("\n")
    const folder = yield* fs.makeTempDirectoryScoped({ prefix: "tinyllama-slurm-" })
    const file = path.join(folder, "job.sh")
    yield* fs.writeFileString(file, script)
    const said = yield* queue.test(file)
    return found(stage, {
      state: "ok",
      detail: `${shown(lines)}. ${said.replace(/^Job \d+ /u, "a job would be taken ")}`
    })
  }).pipe(
    Effect.catchTag("SlurmError", (error) =>
      Effect.succeed(
        found(stage, {
          state: "missing",
          detail: `${error.message} (asked with ${shown(wanted(stage))})`,
          next: error.next
        })
      )
    ),
    Effect.catch((error) =>
      Effect.succeed(
        found(stage, {
          state: "missing",
          detail: `cannot ask Slurm: ${error.message}`,
          next: "free some space in the temporary folder"
        })
      )
    ),
    Effect.scoped
  )

const found = (stage: ResolvedStage, finding: Pick<Finding, "state" | "detail" | "next">): Finding => ({
  subject,
  stage: stage.name,
  ...finding
})

/** The directives of the stage's job, or of its array. */
const wanted = (stage: OnSlurm["stage"]): ReadonlyArray<string> =>
  directives({
    name: `tl-${stage.name.replaceAll(/[^\w-]+/gu, "_")}`,
    run: "preflight",
    stage: stage.name,
    folder: tmpdir(),
    resources: stage.resources,
    options: stage.executor,
    timeout: stage.timeout,
    grace: stage.grace,
    tasks: stage.type.shares === true ? stage.executor.array : 0
  })

/** What a person wants to see of them: not where files go. */
const shown = (lines: ReadonlyArray<string>): string =>
  lines.filter((line) => !/^--(?:job-name|comment|output|error|open-mode|signal|requeue)\b/u.test(line)).join(" ")

/** In a few words, for the plan: "slurm: --partition=gpu --nodes=2 …". */
export const submission = (stage: ResolvedStage): string | undefined =>
  stage.executor.kind === "slurm" && stage.type.runsIn !== "runner"
    ? `slurm: ${shown(wanted(stage as OnSlurm["stage"]))}`
    : undefined
