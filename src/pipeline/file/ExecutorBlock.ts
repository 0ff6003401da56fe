/** `executor`: where a stage's attempts run. All of it is operational: no key changes with it. */
import { Duration, Schema } from "effect"
import type { Diagnostic } from "./Diagnostics.ts"
import { describeVia, merge } from "./Overlay.ts"
import { decodeBlock } from "./Parameters.ts"
import { durationForm, durationPattern, parseDuration } from "./Quantity.ts"
import { type AnyStageType, parameter } from "../StageType.ts"
import { diagnose, type MappingNode, type Node } from "./YamlSource.ts"

/** A Slurm job for each attempt. */
export interface SlurmOptions {
  readonly kind: "slurm"
  readonly partition: string | undefined
  readonly account: string | undefined
  readonly qos: string | undefined
  readonly constraint: string | undefined
  /** Of each job; undefined: the stage's timeout, else the partition's own. */
  readonly time: Duration.Duration | undefined
  /** Further options of sbatch, each as it stands behind #SBATCH. */
  readonly extra: ReadonlyArray<string>
  /** Lines of shell that run in the job before the workers start. */
  readonly setup: string
  /** How ranks that speak MPI are started; auto: srun --mpi=pmix where Slurm has it, else mpirun. */
  readonly mpi: "auto" | "pmix" | "pmi2" | "mpirun"
  /** Tasks of the job array that shares a stage's work out (tokenize); 0: one job does all of it. */
  readonly array: number
  readonly requeue: boolean
  readonly onInterrupt: "cancel" | "detach"
  /** The longest time between two looks at the queue. */
  readonly poll: Duration.Duration
}
export type ExecutorChoice = { readonly kind: "local" } | SlurmOptions

export const local: ExecutorChoice = { kind: "local" }

/** What the program's own defaults are. */
export const slurmDefaults: SlurmOptions = {
  kind: "slurm",
  partition: undefined,
  account: undefined,
  qos: undefined,
  constraint: undefined,
  time: undefined,
  extra: [],
  setup: "",
  mpi: "auto",
  array: 0,
  requeue: true,
  onInterrupt: "cancel",
  poll: Duration.seconds(15)
}

const kinds = ["local", "slurm"] as const

/** One word of a Slurm command line: no space or line end could smuggle in another directive. */
const Word = Schema.String.check(
  Schema.isPattern(/^[\w.,:;&|!()[\]*=@%+/-]+$/u, { message: "must be one word, without spaces" })
)
const Option_ = Schema.String.check(
  Schema.isPattern(/^-{1,2}[A-Za-z][^\n\r]*$/u, { message: 'must be an option of sbatch, say "--exclude=node7"' })
)
const DurationText = Schema.String.check(Schema.isPattern(durationPattern, { message: `must be ${durationForm}` }))
const change = "operational"

/** Beside `kind`. What the file's reader goes by, and the schema for editors. */
export const slurmParameters = {
  partition: parameter(Schema.NullOr(Word), {
    change,
    describe: "Slurm's partition; null: the cluster's default",
    default: null
  }),
  account: parameter(Schema.NullOr(Word), { change, describe: "The account that jobs are charged to", default: null }),
  qos: parameter(Schema.NullOr(Word), { change, describe: "Quality of service", default: null }),
  constraint: parameter(Schema.NullOr(Word), {
    change,
    describe: "Features that the nodes must have, say a100&nvlink",
    default: null
  }),
  time: parameter(Schema.NullOr(DurationText), {
    change,
    describe:
      "Wall time of each job, say 24h: shortly before it is over the stage saves, and the job is requeued to go on. null: the stage's timeout, else the partition's default",
    default: null
  }),
  extra: parameter(Schema.Array(Option_), {
    change,
    describe: 'More options of sbatch, each as it stands behind #SBATCH, say "--exclude=node7"',
    default: []
  }),
  setup: parameter(Schema.String, {
    change,
    describe: "Lines of shell that run on the first node before the workers start, say module load openmpi",
    default: ""
  }),
  mpi: parameter(Schema.Literals(["auto", "pmix", "pmi2", "mpirun"]), {
    change,
    describe:
      "How ranks that speak MPI are started: pmix and pmi2 by srun, mpirun inside the allocation; auto: pmix where this Slurm has it, else mpirun",
    default: "auto"
  }),
  array: parameter(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 10_000 })), {
    change,
    describe:
      "Tasks of a job array that do a share of the work each, before one job makes the result of them (tokenize)",
    default: 0
  }),
  requeue: parameter(Schema.Boolean, {
    change,
    describe: "Whether a job that is preempted, loses its node or uses up its time goes back into the queue",
    default: true
  }),
  on_interrupt: parameter(Schema.Literals(["cancel", "detach"]), {
    change,
    describe:
      "What Ctrl-C does: cancel lets the jobs save within their grace and ends them, detach leaves them alone. A second Ctrl-C leaves at once",
    default: "cancel"
  }),
  poll: parameter(DurationText, { change, describe: "The longest time between two looks at the queue", default: "15s" })
} as const

/** What takes the block's parameters, in the words of its messages. */
const slurm: Pick<AnyStageType, "name" | "params"> = { name: "the Slurm executor", params: slurmParameters }

/** The stage's block laid over the defaults', where both are of one kind. */
export const executorOf = (
  own: Node | undefined,
  inherited: Node | undefined,
  path: string,
  report: Array<Diagnostic>
): ExecutorChoice => {
  const node = own === undefined ? inherited : over(own, inherited)
  if (node === undefined || (node._tag === "scalar" && node.value === null)) return local
  if (node._tag !== "mapping") {
    report.push(diagnose(node.span, path, `must be a mapping, say { kind: slurm }${describeVia(node)}`))
    return local
  }
  const kind = kindOf(node)
  if (kind === undefined) {
    const at = node.entries.get("kind")?.value
    report.push(diagnose(at?.span ?? node.span, `${path}.kind`, `must be one of ${kinds.join(", ")}`))
    return local
  }
  const { kind: _, ...rest } = Object.fromEntries(node.entries)
  const block: MappingNode = { ...node, entries: new Map(Object.entries(rest)) }
  if (kind === "local") {
    for (const [key, entry] of block.entries)
      report.push(diagnose(entry.key, `${path}.${key}`, `unknown key "${key}"; the local executor has kind alone`))
    return local
  }
  return decodeSlurm(block, path, report)
}

const over = (own: Node, inherited: Node | undefined): Node => {
  if (own._tag !== "mapping" || inherited?._tag !== "mapping") return own
  const kind = own.entries.get("kind") === undefined ? kindOf(inherited) : kindOf(own)
  return kind === kindOf(inherited) ? merge(inherited, own) : own
}

const kindOf = (node: MappingNode): (typeof kinds)[number] | undefined => {
  const value = node.entries.get("kind")?.value
  return value?._tag === "scalar" ? kinds.find((kind) => kind === value.value) : undefined
}

const Decoded = Schema.Struct({
  partition: Schema.NullOr(Schema.String),
  account: Schema.NullOr(Schema.String),
  qos: Schema.NullOr(Schema.String),
  constraint: Schema.NullOr(Schema.String),
  time: Schema.NullOr(Schema.String),
  extra: Schema.Array(Schema.String),
  setup: Schema.String,
  mpi: slurmParameters.mpi.schema,
  array: Schema.Int,
  requeue: Schema.Boolean,
  on_interrupt: slurmParameters.on_interrupt.schema,
  poll: Schema.String
})
const isDecoded = Schema.is(Decoded)

const decodeSlurm = (block: MappingNode, path: string, report: Array<Diagnostic>): ExecutorChoice => {
  const faults: Array<Diagnostic> = []
  const decoded = decodeBlock(slurm, block, block.span, path, faults)
  report.push(...faults)
  if (faults.length > 0 || !isDecoded(decoded)) return local
  const { account, constraint, on_interrupt, partition, poll, qos, time, ...rest } = decoded
  return {
    kind: "slurm",
    partition: partition ?? undefined,
    account: account ?? undefined,
    qos: qos ?? undefined,
    constraint: constraint ?? undefined,
    time: time === null ? undefined : parseDuration(time),
    onInterrupt: on_interrupt,
    poll: parseDuration(poll) ?? Duration.seconds(15),
    ...rest
  }
}

/** As pipeline.resolved.json and diffs show it: what is not given is left out. */
export const describeExecutor = (executor: ExecutorChoice): Readonly<Record<string, Schema.Json>> => {
  if (executor.kind === "local") return { kind: "local" }
  const { onInterrupt, poll, time, ...rest } = executor
  const shown = {
    ...rest,
    on_interrupt: onInterrupt,
    poll: Duration.format(poll),
    time: time === undefined ? undefined : Duration.format(time)
  }
  return Object.fromEntries(
    Object.entries(shown).flatMap(([key, value]) => (value === undefined ? [] : [[key, value] as const]))
  )
}
