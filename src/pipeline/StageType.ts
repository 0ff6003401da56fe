/**
 * What a stage type is: data (parameters with their change classes, typed ports, a version) and one function. The runner owns retries,
 * state, events and cancellation; it reads these definitions and knows no stage by name.
 */
import { Effect, type FileSystem, type Path, Schema } from "effect"
import type { HttpClient } from "effect/http"
import type { ArtifactHandle, ArtifactType, Facts } from "../artifacts/Artifact.ts"

/**
 * What a changed parameter does to results that exist:
 * identity: a new stage key, the stage runs anew; continuation: same lineage, goes on from its last checkpoint;
 * additive: only the new items run; operational: nothing is stale.
 */
export const ChangeClass = Schema.Literals(["identity", "continuation", "additive", "operational"])
export type ChangeClass = typeof ChangeClass.Type
/** A rule may look at the whole parameter sets: more tokens continue a run under one schedule and need a new one under another. */
export type ChangeRule = ChangeClass | ((change: Change) => ChangeClass)

/** One parameter's values in canonical encoded form, with all parameters of both sides. */
export interface Change {
  readonly before: Schema.Json
  readonly after: Schema.Json
  readonly paramsBefore: EncodedParams
  readonly paramsAfter: EncodedParams
}
export type EncodedParams = Readonly<Record<string, Schema.Json>>

export interface Parameter<S extends Schema.Codec<unknown, unknown> = Schema.Codec<unknown, unknown>> {
  readonly schema: S
  readonly change: ChangeRule
  readonly describe: string
  /** The encoded value when the file gives none; a parameter without default is required. */
  readonly default?: S["Encoded"]
}

/** Declares a parameter: its Schema, what a change does, one line of help, and its default in the file's own form. */
export const parameter = <S extends Schema.Codec<unknown, unknown>>(
  schema: S,
  options: { readonly change: ChangeRule; readonly describe: string; readonly default?: S["Encoded"] }
): Parameter<S> => ({ schema, ...options })

export type Parameters = Readonly<Record<string, Parameter>>
export type Decoded<P extends Parameters> = { readonly [K in keyof P]: P[K]["schema"]["Type"] }

export interface InputPort {
  readonly type: ArtifactType
  /** Takes a list of edges in the file's order. */
  readonly many?: boolean
  readonly optional?: boolean
  /** additive: a result with other artifacts here still holds what belongs to those that stayed. Default identity. */
  readonly change?: "identity" | "additive"
  readonly describe: string
}
export interface OutputPort {
  readonly type: ArtifactType
  readonly describe: string
}

export type InputHandles<I extends Readonly<Record<string, InputPort>>> = {
  readonly [K in keyof I]: I[K] extends { readonly many: true }
    ? ReadonlyArray<ArtifactHandle>
    : I[K] extends { readonly optional: true }
      ? ArtifactHandle | undefined
      : ArtifactHandle
}

/** One live reading: `done` of `total` in `unit`; `metrics` are shown and journaled as they are. */
export interface Progress extends Extent {
  readonly metrics?: Readonly<Record<string, number>>
}

/** How far something is: `done` of `total` in `unit`. */
export interface Extent {
  readonly done: number
  readonly total: number
  readonly unit: string
}

/**
 * An older result of the same lineage: it differs from what is asked for in `continuation` and `additive` fields only. The stage takes from it
 * what it would make itself, byte for byte, and nothing else.
 */
export interface Previous<P> {
  readonly params: P
  /** Output port → artifact. Empty when that run never finished. */
  readonly outputs: Readonly<Record<string, ArtifactHandle>>
  /** Its work folder, when it never finished: to read from, never to write to. */
  readonly work: string | undefined
}

/** What a stage will take and give, as far as its parameters and its inputs' facts tell before it runs. */
export interface Forecast {
  /** Work in the stage's own unit, to which its time is proportional: bytes, FLOP. undefined: not known yet, though some facts are. */
  readonly amount: number | undefined
  readonly unit: string
  /** Bytes that the outputs and the work folder will take at most. */
  readonly bytes: number | undefined
  /** Bytes of memory at most. */
  readonly memory?: number
  /** What will come of it, in one short phrase for the plan: how much, how large. Estimates bear a ~. */
  readonly outlook?: string
  /** What `previous` spares: it begins at `done` of `total`. */
  readonly resumesAt?: Extent
  /**
   * Facts of the outputs that are known before, under the names that the real ones have, for the forecasts of stages below. `estimated` lists those
   * that rest on ratios.
   */
  readonly outputs: Readonly<Record<string, Facts>>
}

/** One of `of` equal parts of a stage's work, counted from 1. */
export interface Share {
  readonly index: number
  readonly of: number
}

/** One of `size` processes that do an attempt's work together, in step. run/Ranks.ts reads it from what the launcher says. */
export interface Ranks {
  /** From 0. Rank 0 speaks for all: its progress and its facts are the attempt's. */
  readonly rank: number
  readonly size: number
  /** Among the ranks of this machine: which GPU is this one's. */
  readonly localRank: number
  readonly localSize: number
  /** Where rank 0 listens for the others; undefined where no launcher says. */
  readonly master: { readonly address: string; readonly port: number } | undefined
  readonly launcher: "none" | "environment" | "mpirun" | "mpiexec" | "srun"
  /** Whether MPI_Init finds the others: mpirun started them, or srun with a PMI plugin. */
  readonly mpi: boolean
  /** How many ranks the file asks for, where an attempt may have fewer because some were lost. */
  readonly wanted?: number
}

/** GPUs of the machine that a plan is made for, which need not be this one. */
export interface Gpus {
  readonly count: number
  /** FLOP/s of one of them at its peak. */
  readonly peak: number
}

/** What `run` may use. It executes in a worker process of its own, so native code that dies takes only its attempt along. */
export interface StageContext<P, I> {
  /** The stage's name in the file. */
  readonly stage: string
  readonly params: P
  readonly inputs: I
  /** The empty folder to fill for an output port; it is published when `run` succeeds. */
  readonly output: (port: string) => string
  /** A folder that all attempts with the same stage key share: in-stage checkpoints and partial downloads live here. */
  readonly work: string
  /** What `continuation` and `additive` changes leave to build on; undefined where there is nothing. */
  readonly previous: Previous<P> | undefined
  /** Relative paths in parameters are relative to this: the pipeline file's folder. */
  readonly baseDirectory: string
  readonly threads: number
  /** For stage types with `shares`: do this share alone, beside others that do theirs in the same work folder, and fail with ShareDone. */
  readonly share?: Share | undefined
  /** For stage types with `ranks`: which of the processes this one is. All have the same job, work folder and output folders. */
  readonly ranks: Ranks
  readonly progress: (reading: Progress) => void
  /** A line for the stage's log, shown to the user; `warn` stands out and is repeated in the summary. */
  readonly log: (line: string) => void
  readonly warn: (line: string) => void
  /** True once SIGTERM or SIGINT asked this attempt to stop: save what is resumable, then fail with Preempted. Poll it in every loop. */
  readonly stopRequested: () => boolean
}

/** Why a stage failed, in the classes that retry policies name. Only `network` and `worker-lost` are worth the same try again. */
export const FailureClass = Schema.Literals([
  "invalid-input",
  "corrupt",
  "network",
  "disk-full",
  "diverged",
  "check-failed",
  "out-of-memory",
  "timeout",
  "worker-lost",
  "preempted",
  "internal"
])
export type FailureClass = typeof FailureClass.Type

/** An expected failure: `message` names the place and the cause, `next` the step that helps. */
export class StageError extends Schema.TaggedError<StageError>()("StageError", {
  failure: FailureClass,
  message: Schema.String,
  next: Schema.String
}) {}

/** The attempt stopped because it was asked to, and saved what it could. The runner exits 75. */
export class Preempted extends Schema.TaggedError<Preempted>()("Preempted", {
  message: Schema.String,
  /** The work goes on without the runner: a cluster's job does it, and the next run follows it. */
  detached: Schema.optionalKey(Schema.Boolean)
}) {}

/** The attempt did its share, and left it in the work folder. `done` of `total` parts of the whole work are finished so far, by whomever. */
export class ShareDone extends Schema.TaggedError<ShareDone>()("ShareDone", {
  done: Schema.Int,
  total: Schema.Int,
  unit: Schema.String
}) {
  override get message() {
    return `${this.done} of ${this.total} ${this.unit} are finished`
  }
}

export interface PluginSource {
  /** As the file writes it: "./my-stage.ts", "tinyllama-stage-foo#second". */
  readonly uses: string
  /** Digest of the module and of all that it imports: part of the stage key. */
  readonly code: string
}

export type StageServices = FileSystem.FileSystem | Path.Path | HttpClient.HttpClient

export interface StageType<
  P extends Parameters = Parameters,
  I extends Readonly<Record<string, InputPort>> = Readonly<Record<string, InputPort>>,
  O extends Readonly<Record<string, OutputPort>> = Readonly<Record<string, OutputPort>>
> {
  readonly name: string
  /** Raise when the same parameters and inputs would give different bytes: it is part of the stage key. */
  readonly version: number
  readonly describe: string
  /** Where a plugin came from; set by whoever loads it, absent for the program's own stage types. */
  readonly plugin?: PluginSource
  readonly params: P
  readonly inputs: I
  readonly outputs: O
  /** Cores that a stage takes when the file names none: "all" for stages that split their work over threads. Default 1. */
  readonly cpus?: "all" | number
  /**
   * What the stage reads from outside the pipeline, as JSON for the stage key (digests of local files, say). Evaluated by the runner, before
   * anything runs; without it only parameters and inputs count.
   */
  observe?(
    params: Decoded<P>,
    baseDirectory: string
  ): Effect.Effect<Schema.Json, StageError, FileSystem.FileSystem | Path.Path>
  /**
   * Where an attempt with this work folder would go on; undefined: from the start. Reads, never writes: `plan` asks while another process may be
   * at work there.
   */
  resumePoint?(
    work: string,
    params: Decoded<P>
  ): Effect.Effect<Extent | undefined, never, FileSystem.FileSystem | Path.Path>
  /**
   * Amounts and sizes before anything runs; undefined where too little is known. Port → facts of its artifacts, in order; `observed` is what `observe`
   * returned; `origins` are the artifacts' names, "stage.port", by port; `ranks` is how many processes, in the memory of this machine, will do
   * the work in step.
   */
  forecast?(
    params: Decoded<P>,
    inputs: { readonly [K in keyof I]: ReadonlyArray<Facts> },
    previous?: { readonly params: Decoded<P>; readonly outputs: Readonly<Record<string, Facts>> },
    observed?: Schema.Json,
    origins?: { readonly [K in keyof I]: ReadonlyArray<string> },
    ranks?: number
  ): Forecast | undefined
  /** Seconds by the engine's own model of this machine, or of one with the GPUs that the file names, for where no past run can tell. */
  modelSeconds?(forecast: Forecast, params: Decoded<P>, threads: number, gpus?: Gpus): Effect.Effect<number | undefined>
  /** Several processes may do the work together, a share each (StageContext.share). An attempt without a share takes what is done, and does the rest. */
  readonly shares?: true
  /** Several processes may do the work together, in step (StageContext.ranks); as many as `resources.gpus` where the file does not say. */
  readonly ranks?: true
  /** Of ranks: seconds that they wait for one of them that does not move before they give up. */
  patience?(params: Decoded<P>): number
  /** runner: so light that a process of its own would cost more than the work; no native code, nothing that blocks. Default worker. */
  readonly runsIn?: "worker" | "runner"
  /** What a changed observation does; additive: `run` tells by itself which parts are still what they were. Default identity. */
  readonly observationChange?: "identity" | "additive"
  /** One short phrase for the table at a run's end, from the facts of each output port: how much, how good. */
  headline?(facts: { readonly [K in keyof O]: Facts }): string
  /** Fills the output folders; returns each port's facts. */
  run(
    context: StageContext<Decoded<P>, InputHandles<I>>
  ): Effect.Effect<{ readonly [K in keyof O]: Facts }, StageError | Preempted | ShareDone, StageServices>
}

/** Keeps the literal types of ports and parameters, so that `run` sees them exactly. */
export const defineStage = <
  const P extends Parameters,
  const I extends Readonly<Record<string, InputPort>>,
  const O extends Readonly<Record<string, OutputPort>>
>(
  stage: StageType<P, I, O>
): StageType<P, I, O> => stage

/**
 * A stage type whose parameters and ports are known only at run time: what registries hold. (`run` and `observe` are methods, hence bivariant:
 * every StageType is one of these.)
 */
export type AnyStageType = StageType
