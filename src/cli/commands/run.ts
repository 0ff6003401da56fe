/** `tinyllama run FILE`: runs what is not up to date, shows it, and ends with what was made. */
import { Console, Deferred, Effect, Option, Schema, SchemaGetter } from "effect"
import { Command, Flag } from "effect/cli"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { loadPipeline } from "../../pipeline/file/Pipeline.ts"
import { isPlanFile, readPlan } from "../../pipeline/plan/PlanDocument.ts"
import * as Runner from "../../pipeline/run/Runner.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import * as Signals from "../../pipeline/run/Signals.ts"
import { ranksOf } from "../../pipeline/run/Ranks.ts"
import type { Ranks, Share } from "../../pipeline/StageType.ts"
import { displayMode, startDisplay } from "../Display.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import { summaryText } from "../RunTable.ts"

/** "3/16" */
const Shard = Schema.String.check(
  Schema.makeFilter((text) => {
    const { index, of } = shareOf(text)
    return (/^\d+\/\d+$/u.test(text) && index >= 1 && index <= of) || "k/n with k from 1 to n, for example 3/16"
  })
).pipe(
  Schema.decodeTo(Schema.Struct({ index: Schema.Int, of: Schema.Int }), {
    decode: SchemaGetter.transform(shareOf),
    encode: SchemaGetter.transform(({ index, of }) => `${index}/${of}`)
  })
)

function shareOf(text: string): Share {
  const [index = NaN, of = NaN] = text.split("/").map(Number)
  return { index, of }
}

export const runCommand = Command.make(
  "run",
  {
    file: Flags.pipelineFile,
    ...Flags.selection,
    ...Flags.overlays,
    runs: Flags.runs,
    paranoid: Flags.paranoid,
    json: Flags.json,
    plain: Flag.Boolean("plain").pipe(Flag.withDefault(false), Flag.withDescription("Plain lines, on a terminal too")),
    run: Flag.String("run").pipe(
      Flag.withMetavar("id|new"),
      Flag.optional,
      Flag.withDescription("Go on with this run; new: a new run even if the latest one did not finish")
    ),
    keepGoing: Flag.Boolean("keep-going").pipe(
      Flag.withDefault(false),
      Flag.withDescription("After a failure, go on with the stages that do not need the failed one")
    ),
    noPreflight: Flag.Boolean("no-preflight").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Begin without looking the pipeline over for what could not work (see doctor)")
    ),
    shard: Flag.String("shard").pipe(
      Flag.withMetavar("k/n"),
      Flag.withSchema(Shard),
      Flag.optional,
      Flag.withDescription(
        "Do the k-th of n shares of the one stage that --only selects (tokenize), for job arrays; the last one to end makes the result"
      )
    ),
    cpus: Flag.Int("cpus").pipe(
      Flag.withMetavar("n"),
      Flag.atMost(1),
      Flag.withDescription("Cores to share among stages; all by default")
    )
  },
  Effect.fn(function* (flags) {
    const asked = Option.getOrUndefined(flags.run)
    const { pipeline, promise, selection } = yield* what(flags)
    const ranks = yield* Effect.fromResult(ranksOf(process.env)).pipe(
      Effect.mapError(({ message, next }) => new UsageError({ message: `${message}. Next: ${next}` }))
    )
    if (ranks.rank > 0) return yield* followRank0(flags.runs, ranks)
    const joined = ranks.size === 1 ? undefined : yield* joinRanks(flags.runs, ranks)
    const summary = yield* Effect.gen(function* () {
      const stop = yield* Signals.stopSignal
      const finishDisplay = yield* startDisplay(displayMode(flags))
      const cpus = flags.cpus[0]
      const ran = yield* Runner.run(pipeline, {
        ...selection,
        ...(promise === undefined ? {} : { promise }),
        ...(asked === undefined ? {} : { run: asked }),
        ...(cpus === undefined ? {} : { cpus }),
        ...(Option.isNone(flags.shard) ? {} : { share: flags.shard.value }),
        keepGoing: flags.keepGoing,
        preflight: !flags.noPreflight,
        stop: Effect.asVoid(Deferred.await(stop))
      })
      yield* finishDisplay
      return ran
    }).pipe(Effect.scoped, Effect.provide(LocalRunner.layer({ ...flags, ...(joined === undefined ? {} : { joined }) })))
    if (!flags.json) yield* Console.log(summaryText(summary, pipeline))
    const code = Runner.exitCodeOf(summary)
    yield* joined?.announcer.announce({ exitCode: code }) ?? Effect.void
    if (code !== 0) return yield* new Ended({ code })
  }, Effect.scoped)
).pipe(
  Command.withDescription("Run a pipeline: only what is not up to date, resuming where an earlier run stopped"),
  Command.withExamples([
    { command: "tinyllama run pipeline.yaml" },
    { command: "tinyllama run pipeline.yaml --from-stage eval" },
    { command: "tinyllama run plan.json" },
    { command: "tinyllama run pipeline.yaml --only tokens --shard 3/16" },
    { command: "tinyllama run pipeline.yaml -S vars.budget=1e6 -p smoke" }
  ])
)

/** mpirun, Kubernetes or srun started this command once a rank, and this is the first: the runner. */
const joinRanks = Effect.fnUntraced(function* (runs: string, ranks: Ranks) {
  const { announcer, launchFile } = yield* Effect.promise(() => import("../../pipeline/run/JoinedRanks.ts"))
  return { ranks, announcer: yield* announcer(yield* launchFile(runs, ranks, process.env)) }
})

/** Any other rank does as the first one says. */
const followRank0 = Effect.fnUntraced(function* (runs: string, ranks: Ranks) {
  const [{ follow, launchFile }, { defaultWorker }] = yield* Effect.promise(() =>
    Promise.all([import("../../pipeline/run/JoinedRanks.ts"), import("../../pipeline/run/LocalExecutor.ts")])
  )
  const stop = yield* Signals.stopSignal
  const file = yield* launchFile(runs, ranks, process.env)
  const code = yield* follow(file, ranks, { worker: defaultWorker, stop: Effect.asVoid(Deferred.await(stop)) })
  if (code !== 0) return yield* new Ended({ code })
})

/** A pipeline file with its flags, or a saved plan with those that it was made with. */
const what = Effect.fnUntraced(function* (
  flags: Parameters<typeof Flags.loadPipeline>[0] & Parameters<typeof Flags.toSelection>[0]
) {
  const selection = Flags.toSelection(flags)
  if (!isPlanFile(flags.file)) {
    return { pipeline: yield* Flags.loadPipeline(flags), selection, promise: undefined }
  }
  if (flags.set.length + flags.profile.length + Object.keys(selection).length > 0) {
    return yield* new UsageError({
      message: `${flags.file} says which profiles, values and stages: leave the other flags out, or make another plan with them`
    })
  }
  const document = yield* readPlan(flags.file)
  const { file, overrides, profiles } = document
  const pipeline = yield* loadPipeline({ file, overrides, profiles })
  return { pipeline, selection: document.selection, promise: { file: flags.file, document } }
})
