/** `tinyllama stop [RUN]`: ends a run in another process, and says what is kept of it. */
import { Console, type Duration, Effect, Option } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { allJobs } from "../../pipeline/run/ClusterJob.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { durationForm, parseDuration } from "../../pipeline/file/Quantity.ts"
import { type RunInfo, Runs } from "../../pipeline/runs/Runs.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import { type KeptStage, longestGrace, type Stopped, stopRun } from "../../pipeline/runs/Stop.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"
import { statusWord } from "./status.ts"

export const stopCommand = Command.make(
  "stop",
  {
    run: Argument.String("run").pipe(
      Argument.optional,
      Argument.withDescription(
        "A run's id, tag, the beginning of its id, or latest; the one that runs where none is given"
      )
    ),
    grace: Flag.String("grace").pipe(
      Flag.withMetavar("duration"),
      Flag.atMost(1),
      Flag.withDescription(
        "Kill the runner when it has not saved and ended by then, say 5m; its stages' own grace by default"
      )
    ),
    now: Flag.Boolean("now").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Kill at once: what was not saved yet is done again later")
    ),
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const grace = yield* graceOf(flags)
      const run = yield* chosen(Option.getOrUndefined(flags.run))
      if (run === undefined) return yield* Console.log("No run is going on.")
      const stopped = yield* stopRun(run, { now: flags.now, ...(grace === undefined ? {} : { grace }) })
      const jobs = yield* stopClusterJobs(run, { now: flags.now, ...(grace === undefined ? {} : { grace }) })
      const after = yield* (yield* Runs).find(run.id)
      if (flags.json)
        return yield* Console.log(JSON.stringify({ version: 1, run: run.id, stopped: stopped ?? null, jobs }))
      if (stopped === undefined && jobs.length === 0)
        return yield* Console.log(`run ${run.id} is not running: ${statusWord(after)}`)
      yield* Console.log(
        [
          ...(stopped === undefined ? [] : [said(run, stopped), ...stopped.kept.map(keptLine)]),
          ...jobs.map(
            ({ how, id, stage }) =>
              `  ${stage}: Slurm job ${id} ${how === "saved" ? "saved and ended" : "was cancelled"}`
          ),
          `Next: ${again(run)}   goes on with it`
        ].join("\n")
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(
  Command.withDescription("Stop a run: its stages save, what is complete is kept"),
  Command.withExamples([{ command: "tinyllama stop" }, { command: "tinyllama stop latest --grace 5m" }])
)

const graceOf = (flags: { readonly grace: ReadonlyArray<string>; readonly now: boolean }) => {
  const [text] = flags.grace
  if (text === undefined) return Effect.succeed(undefined)
  if (flags.now) return Effect.fail(new UsageError({ message: "--now does not wait: leave --grace out" }))
  const grace: Duration.Duration | undefined = parseDuration(text)
  return grace === undefined
    ? Effect.fail(new UsageError({ message: `--grace ${text}: must be ${durationForm}` }))
    : Effect.succeed(grace)
}

/** Jobs that go on without a runner, or that theirs left to themselves. */
const stopClusterJobs = Effect.fnUntraced(function* (
  run: RunInfo,
  options: { readonly now: boolean; readonly grace?: Duration.Duration }
) {
  const { root } = yield* ArtifactStore
  if (!(yield* allJobs(root)).some((job) => job.run === run.id)) return []
  const [{ stopJobs }, { SlurmQueue }] = yield* Effect.promise(() =>
    Promise.all([import("../../pipeline/run/slurm/SlurmStop.ts"), import("../../pipeline/run/slurm/SlurmQueue.ts")])
  )
  const grace = options.grace ?? (yield* longestGrace(run))
  return yield* Effect.provide(stopJobs(run.id, { now: options.now, grace }), SlurmQueue.layer)
})

/** The run named, or the only one that runs, be it as jobs of a cluster alone. */
const chosen = Effect.fnUntraced(function* (query: string | undefined) {
  const runs = yield* Runs
  if (query !== undefined) return yield* runs.find(query)
  const withJobs = new Set((yield* allJobs((yield* ArtifactStore).root)).map(({ run }) => run))
  const running = (yield* runs.list).filter(
    (run) => (run.status === "running" && !run.abandoned) || withJobs.has(run.id)
  )
  if (running.length > 1) {
    const ids = running.map((run) => run.id).join(", ")
    return yield* new UsageError({ message: `${running.length} runs are going on: ${ids}; name the one to stop` })
  }
  return running[0]
})

/** The command that goes on with the run: the same file, profiles and overrides. */
const again = (run: RunInfo): string =>
  [
    "npx tinyllama run",
    run.file,
    ...run.profiles.map((name) => `-p ${name}`),
    ...run.overrides.map((one) => `-S '${one}'`)
  ].join(" ")

const said = (run: RunInfo, { killed, pid, seconds }: Stopped): string =>
  `run ${run.id}: process ${pid} ${killed ? "was killed" : "saved and ended"} after ${Format.duration(seconds)}`

const keptLine = ({ done, stage, state }: KeptStage): string => {
  if (state === "complete") return `  ${stage}: complete, kept`
  const heard =
    done === undefined ? "" : `, last heard at ${Format.count(done.done)} of ${Format.count(done.total)} ${done.unit}`
  return `  ${stage}: goes on from its last checkpoint${heard}`
}
