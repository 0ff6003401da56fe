/** `tinyllama runs`: what was run. Here the list and what people say of runs; showing and comparing have files of their own. */
import { join } from "node:path"
import { Console, Effect } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import * as Collection from "../../pipeline/runs/Collection.ts"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { allJobs, forgetJob } from "../../pipeline/run/ClusterJob.ts"
import { eventsFile, lastWord } from "../../pipeline/run/EventsFile.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import { type RunInfo, Runs } from "../../pipeline/runs/Runs.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"
import { compare } from "./runs-compare.ts"
import { show } from "./runs-show.ts"
import { statusWord } from "./status.ts"

const list = Command.make(
  "ls",
  { runs: Flags.runs, json: Flags.json },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const known = yield* (yield* Runs).list
      if (flags.json) return yield* Console.log(JSON.stringify({ version: 1, runs: known }))
      if (known.length === 0) return yield* Console.log("No runs yet. Next: npx tinyllama run pipeline.yaml")
      yield* Console.log(
        Format.table(
          ["run", "pipeline", "status", "started", "tags"],
          known.map((run) => [run.id, run.pipeline, statusWord(run), run.createdAt, marks(run)])
        )
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("List the runs, newest first"))

const marks = (run: RunInfo): string => [...run.tags, ...(run.pinned ? ["(pinned)"] : [])].join(" ")

const aRun = Argument.String("run").pipe(
  Argument.withDescription("A run's id, tag, the beginning of its id, or latest")
)
const removeFlag = (description: string) =>
  Flag.Boolean("remove").pipe(Flag.withDefault(false), Flag.withDescription(description))

const tag = Command.make(
  "tag",
  {
    run: aRun,
    name: Argument.String("name").pipe(
      Argument.withDescription("The name; it stands for the run wherever one is named")
    ),
    remove: removeFlag("Take the name away"),
    runs: Flags.runs
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const run = yield* runs.find(flags.run)
      yield* flags.remove ? runs.untag(run, flags.name) : runs.tag(run, flags.name)
      yield* Console.log(
        flags.remove ? `run ${run.id} is no longer called ${flags.name}` : `run ${run.id} is now called ${flags.name}`
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Give a run a name, or with --remove take it away"))

const pin = Command.make(
  "pin",
  { run: aRun, remove: removeFlag("Let it go again"), runs: Flags.runs },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const run = yield* runs.find(flags.run)
      yield* flags.remove ? runs.unpin(run) : runs.pin(run)
      yield* Console.log(
        flags.remove
          ? `run ${run.id} can be removed`
          : `run ${run.id} is kept, with all it reaches, until runs pin ${run.id} --remove`
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Keep a run: runs rm refuses it, gc removes nothing that it reaches"))

/** A cluster's job writes into the folders of its run, with or without a runner. */
const refuseWithJobs = Effect.fnUntraced(function* (chosen: ReadonlyArray<RunInfo>) {
  const { root } = yield* ArtifactStore
  for (const job of yield* allJobs(root)) {
    if (!chosen.some(({ id }) => id === job.run)) continue
    // Its last word said, it writes no more, and nobody wants its result.
    if (lastWord(join(job.folder, eventsFile)) !== undefined) yield* forgetJob(root, job.key)
    else
      return yield* new UsageError({
        message: `Slurm job ${job.id ?? job.name} is at work on ${job.stage} of run ${job.run}. Next: tinyllama stop ${job.run}, then remove it`
      })
  }
})

const remove = Command.make(
  "rm",
  { run: aRun.pipe(Argument.atLeast(1)), runs: Flags.runs },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const found = yield* Effect.forEach(flags.run, runs.find)
      const chosen = Array.from(new Map(found.map((run) => [run.id, run])).values())
      yield* refuseWithJobs(chosen)
      yield* runs.remove(chosen)
      for (const run of chosen) {
        const names =
          run.tags.length === 0 ? "" : ` and its ${run.tags.length === 1 ? "name" : "names"} ${run.tags.join(", ")}`
        yield* Console.log(`removed run ${run.id}${names}`)
      }
      const garbage = yield* Collection.findGarbage
      const bytes = garbage.reduce((total, one) => total + one.bytes, 0)
      yield* Console.log(
        garbage.length === 0
          ? "Its artifacts stay: other runs reach them."
          : `The store holds ${Format.bytes(bytes)} that no run reaches. Next: tinyllama gc frees them`
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Remove runs; what only they reach stays in the store until gc"))

export const runsCommand = Command.make("runs").pipe(
  Command.withDescription("What was run"),
  Command.withSubcommands([list, show, compare, tag, pin, remove])
)
