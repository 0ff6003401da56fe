/**
 * A stage as a Job of Kubernetes or a PyTorchJob of Kubeflow: a pod a rank, each of which is `tinyllama run --only STAGE` (run/JoinedRanks.ts), over one
 * volume that all of them mount. Pure.
 */
import { Duration, Result, Schema } from "effect"
import { stringify } from "yaml"
import type { ResolvedStage } from "../file/ResolvedPipeline.ts"
import { UsageError } from "../plan/Selection.ts"
import { Manifest, type PodTemplate } from "./KubernetesSchema.ts"

export interface ManifestOptions {
  readonly kind: "Job" | "PyTorchJob"
  /** Of a container that has tinyllama in its PATH. */
  readonly image: string
  /** The claim of a volume that can be mounted by many (ReadWriteMany): pipeline file, data and runs lie there. */
  readonly claim: string
  /** Where it is mounted, and where the run works. */
  readonly mount: string
  readonly namespace: string | undefined
  /** The pipeline file as the pods see it, and what is laid over it. */
  readonly arguments: ReadonlyArray<string>
  /** The Kubernetes secret that holds the stage's secrets, by their names. */
  readonly secret: string
}

const port = 29_500
/** Kubeflow looks for the container of this name. */
const containerName = "pytorch"

/** The manifest's documents; what the stage asks for and Kubernetes cannot give is refused by name. */
export const kubernetesManifest = (
  stage: ResolvedStage,
  options: ManifestOptions
): Result.Result<Manifest, UsageError> => {
  const { gpus, ranks } = stage.resources
  if (ranks > 1 && gpus < ranks)
    return Result.fail(
      new UsageError({
        message: `${stage.name} has ${ranks} ranks and ${gpus} GPUs: ranks without a GPU speak MPI, which pods do not start. Next: give each rank a GPU (resources.gpus: ${ranks}), or run it under Slurm or mpirun`
      })
    )
  if (gpus % ranks !== 0)
    return Result.fail(
      new UsageError({
        message: `${stage.name}: ${gpus} GPUs cannot be divided among ${ranks} ranks. Next: make resources.gpus a multiple of resources.ranks`
      })
    )
  const documents = options.kind === "Job" ? job(stage, options) : [pyTorchJob(stage, options)]
  return Schema.decodeUnknownResult(Manifest, { errors: "all", onExcessProperty: "error" })(documents).pipe(
    Result.mapError(
      (error) =>
        new UsageError({
          message: `${stage.name} does not make a valid manifest: ${error.message.replaceAll(/\s*\n\s*/gu, " ")}. Next: check --image, --claim, --mount, --namespace and --secret`
        })
    )
  )
}

/** As kubectl takes it. */
export const manifestText = (documents: Manifest): string =>
  documents.map((document) => stringify(document, { lineWidth: 0 })).join("---\n")

/** "tinyllama-base": an RFC 1123 label with room for a pod's index. */
export const jobName = (stage: string): string =>
  `tinyllama-${stage.toLowerCase().replaceAll(/[^a-z0-9]+/gu, "-")}`.slice(0, 50).replace(/-+$/u, "")

const metadataOf = (stage: ResolvedStage, { namespace }: ManifestOptions) => ({
  name: jobName(stage.name),
  ...(namespace === undefined ? {} : { namespace }),
  labels: labelsOf(stage)
})

const labelsOf = ({ name }: ResolvedStage) => ({
  "app.kubernetes.io/name": "tinyllama",
  "app.kubernetes.io/component": jobName(name)
})

const job = (stage: ResolvedStage, options: ManifestOptions) => {
  const { ranks } = stage.resources
  const name = jobName(stage.name)
  const metadata = metadataOf(stage, options)
  const index = { fieldRef: { fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']" } }
  const place =
    ranks === 1
      ? []
      : [
          { name: "RANK", valueFrom: index },
          { name: "WORLD_SIZE", value: String(ranks) },
          { name: "LOCAL_RANK", value: "0" },
          { name: "LOCAL_WORLD_SIZE", value: "1" },
          { name: "MASTER_ADDR", value: `${name}-0.${name}` },
          { name: "MASTER_PORT", value: String(port) }
        ]
  const template = podTemplate(stage, options, place)
  return [
    {
      apiVersion: "v1",
      kind: "Service",
      metadata,
      spec: { clusterIP: "None", publishNotReadyAddresses: true, selector: labelsOf(stage) }
    },
    {
      apiVersion: "batch/v1",
      kind: "Job",
      metadata,
      spec: {
        completionMode: "Indexed",
        completions: ranks,
        parallelism: ranks,
        backoffLimit: stage.retry.times * ranks,
        podFailurePolicy: { rules },
        template: { ...template, spec: { restartPolicy: "Never", subdomain: name, ...template.spec } }
      }
    }
  ]
}

/** Exit codes are ours: 75 saved and wants to go on; 2, 3 and 6 would end the same way again. */
const rules = [
  { action: "Ignore", onPodConditions: [{ type: "DisruptionTarget", status: "True" }] },
  { action: "Ignore", onExitCodes: { containerName, operator: "In", values: [75] } },
  { action: "FailJob", onExitCodes: { containerName, operator: "In", values: [2, 3, 6] } }
]

/** The operator itself sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. */
const pyTorchJob = (stage: ResolvedStage, options: ManifestOptions) => {
  const { ranks } = stage.resources
  const template = podTemplate(stage, options, [])
  const replicas = (count: number) => ({ replicas: count, restartPolicy: "OnFailure", template })
  return {
    apiVersion: "kubeflow.org/v1",
    kind: "PyTorchJob",
    metadata: metadataOf(stage, options),
    spec: {
      runPolicy: { cleanPodPolicy: "None", backoffLimit: stage.retry.times * ranks },
      pytorchReplicaSpecs: { Master: replicas(1), ...(ranks === 1 ? {} : { Worker: replicas(ranks - 1) }) }
    }
  }
}

/** A pod a rank. It may take its grace to save when it is told to end, and a moment more to publish. */
const podTemplate = (
  stage: ResolvedStage,
  { arguments: args, claim, image, mount, secret }: ManifestOptions,
  place: ReadonlyArray<unknown>
): { readonly metadata: PodTemplate["metadata"]; readonly spec: Readonly<Record<string, unknown>> } => ({
  metadata: { labels: labelsOf(stage) },
  spec: {
    terminationGracePeriodSeconds: Math.ceil(Duration.toSeconds(stage.grace)) + 30,
    containers: [
      {
        name: containerName,
        image,
        workingDir: mount,
        command: ["tinyllama", "run", ...args, "--only", stage.name, "--plain"],
        env: [
          ...place,
          ...stage.secrets.map((name) => ({ name, valueFrom: { secretKeyRef: { name: secret, key: name } } }))
        ],
        resources: resourcesOf(stage),
        volumeMounts: [
          { name: "workspace", mountPath: mount },
          { name: "shared-memory", mountPath: "/dev/shm" }
        ]
      }
    ],
    volumes: [
      { name: "workspace", persistentVolumeClaim: { claimName: claim } },
      // NCCL and loaders want more than the 64 MB that a container has by itself.
      { name: "shared-memory", emptyDir: { medium: "Memory" } }
    ]
  }
})

/** What each rank's pod takes of what the stage asks for. */
const resourcesOf = ({ resources: { cpus, gpus, memory, ranks } }: ResolvedStage) => {
  const requests = {
    ...(cpus === "all" ? {} : { cpu: String(Math.max(1, Math.floor(cpus / ranks))) }),
    ...(memory === undefined ? {} : { memory: `${Math.ceil(memory / ranks / 2 ** 20)}Mi` })
  }
  const limits = {
    ...(memory === undefined ? {} : { memory: `${Math.ceil(memory / ranks / 2 ** 20)}Mi` }),
    ...(gpus === 0 ? {} : { "nvidia.com/gpu": String(gpus / ranks) })
  }
  return {
    ...(Object.keys(requests).length === 0 ? {} : { requests }),
    ...(Object.keys(limits).length === 0 ? {} : { limits })
  }
}
