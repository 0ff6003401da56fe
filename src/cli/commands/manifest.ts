/** `tinyllama manifest kubernetes STAGE`: what a cluster is told to run a stage, for kubectl. */
import { Effect, Option } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import * as Flags from "../Flags.ts"

const kubernetes = Command.make(
  "kubernetes",
  {
    stage: Argument.String("stage").pipe(Argument.withDescription("The stage to run")),
    file: Flags.pipelineFile,
    ...Flags.overlays,
    kind: Flag.Literals("kind", ["Job", "PyTorchJob"]).pipe(
      Flag.withDefault("Job"),
      Flag.withDescription("Job: Kubernetes' own, Indexed; PyTorchJob: for Kubeflow's training operator")
    ),
    image: Flag.String("image").pipe(Flag.withDescription("A container image with tinyllama in its PATH")),
    claim: Flag.String("claim").pipe(
      Flag.withDescription(
        "The claim of a volume that all pods can write (ReadWriteMany), with the pipeline file in it"
      )
    ),
    mount: Flag.String("mount").pipe(
      Flag.withDefault("/workspace"),
      Flag.withDescription("Where pods mount it, and work")
    ),
    namespace: Flag.String("namespace").pipe(
      Flag.optional,
      Flag.withDescription("The namespace; kubectl's where none is given")
    ),
    secret: Flag.String("secret").pipe(
      Flag.withDefault("tinyllama"),
      Flag.withDescription("The Kubernetes secret whose keys are the names of the stage's secrets")
    )
  },
  Effect.fn(function* (flags) {
    const { kubernetesManifest, manifestText } = yield* Effect.promise(
      () => import("../../pipeline/manifest/KubernetesManifest.ts")
    )
    const pipeline = yield* Flags.loadPipeline(flags)
    const stage = pipeline.stages.find(({ name }) => name === flags.stage)
    if (stage === undefined) {
      const names = pipeline.stages.map(({ name }) => name).join(", ")
      return yield* new UsageError({ message: `${flags.file} has no stage "${flags.stage}"; it has ${names}` })
    }
    const overlays = [
      ...flags.profile.flatMap((name) => ["-p", name]),
      ...flags.set.flatMap((override) => ["-S", override])
    ]
    const manifest = yield* Effect.fromResult(
      kubernetesManifest(stage, {
        kind: flags.kind,
        image: flags.image,
        claim: flags.claim,
        mount: flags.mount,
        namespace: Option.getOrUndefined(flags.namespace),
        secret: flags.secret,
        arguments: [flags.file, ...overlays]
      })
    )
    yield* Effect.sync(() => process.stdout.write(manifestText(manifest)))
  })
).pipe(
  Command.withDescription("Print a stage as a Job of Kubernetes, or a PyTorchJob of Kubeflow"),
  Command.withExamples([
    { command: "tinyllama manifest kubernetes base --image me/tinyllama --claim data | kubectl apply -f -" }
  ])
)

export const manifestCommand = Command.make("manifest").pipe(
  Command.withDescription("What other programs are told to run a stage"),
  Command.withSubcommands([kubernetes])
)
