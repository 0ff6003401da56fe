/**
 * Those fields of Kubernetes (batch/v1 Job, v1 Service) and Kubeflow (kubeflow.org/v1 PyTorchJob) that our manifests use, strictly: a field that is not
 * here is an error, so that a slip shows before a cluster sees it. Sources: the Kubernetes API reference, and the training operator's CRD.
 */
import { Schema } from "effect"

/** RFC 1123 label; with room for what controllers append. */
const Name = Schema.String.check(
  Schema.isPattern(/^[a-z0-9](?:[a-z0-9-]{0,50}[a-z0-9])?$/u, {
    message: "must be an RFC 1123 label of at most 52 letters"
  })
)
/** "4", "500m", "512Gi". */
const Quantity = Schema.String.check(
  Schema.isPattern(/^\d+(?:\.\d+)?(?:m|[kMGTPE]|[KMGTPE]i)?$/u, { message: "must be a Kubernetes quantity" })
)
const Variable = Schema.String.check(Schema.isPattern(/^[A-Za-z_]\w*$/u))
const Count = Schema.Int.check(Schema.isGreaterThan(0))
const Labels = Schema.Record(Schema.String, Schema.String)

const Metadata = Schema.Struct({
  name: Name,
  namespace: Schema.optionalKey(Name),
  labels: Schema.optionalKey(Labels)
})

const EnvironmentVariable = Schema.Union([
  Schema.Struct({ name: Variable, value: Schema.String }),
  Schema.Struct({
    name: Variable,
    valueFrom: Schema.Union([
      Schema.Struct({ fieldRef: Schema.Struct({ fieldPath: Schema.String }) }),
      Schema.Struct({ secretKeyRef: Schema.Struct({ name: Name, key: Schema.String }) })
    ])
  })
])

const Container = Schema.Struct({
  name: Name,
  image: Schema.NonEmptyString,
  workingDir: Schema.String.check(Schema.isPattern(/^\//u, { message: "must be an absolute path" })),
  command: Schema.NonEmptyArray(Schema.String),
  env: Schema.Array(EnvironmentVariable),
  resources: Schema.Struct({
    requests: Schema.optionalKey(Schema.Record(Schema.String, Quantity)),
    limits: Schema.optionalKey(Schema.Record(Schema.String, Quantity))
  }),
  volumeMounts: Schema.Array(Schema.Struct({ name: Name, mountPath: Schema.String }))
})

const Volume = Schema.Union([
  Schema.Struct({ name: Name, persistentVolumeClaim: Schema.Struct({ claimName: Schema.NonEmptyString }) }),
  Schema.Struct({ name: Name, emptyDir: Schema.Struct({ medium: Schema.Literal("Memory") }) })
])

const PodTemplate = Schema.Struct({
  metadata: Schema.Struct({ labels: Labels }),
  spec: Schema.Struct({
    restartPolicy: Schema.optionalKey(Schema.Literals(["Never", "OnFailure"])),
    subdomain: Schema.optionalKey(Name),
    terminationGracePeriodSeconds: Count,
    containers: Schema.NonEmptyArray(Container),
    volumes: Schema.Array(Volume)
  })
})
export type PodTemplate = typeof PodTemplate.Type

export const Job = Schema.Struct({
  apiVersion: Schema.Literal("batch/v1"),
  kind: Schema.Literal("Job"),
  metadata: Metadata,
  spec: Schema.Struct({
    completionMode: Schema.Literal("Indexed"),
    completions: Count,
    parallelism: Count,
    backoffLimit: Schema.Int,
    podFailurePolicy: Schema.Struct({
      rules: Schema.Array(
        Schema.Struct({
          action: Schema.Literals(["Ignore", "Count", "FailJob"]),
          onExitCodes: Schema.optionalKey(
            Schema.Struct({
              containerName: Name,
              operator: Schema.Literals(["In", "NotIn"]),
              values: Schema.Array(Schema.Int)
            })
          ),
          onPodConditions: Schema.optionalKey(
            Schema.Array(Schema.Struct({ type: Schema.Literal("DisruptionTarget"), status: Schema.Literal("True") }))
          )
        })
      )
    }),
    template: PodTemplate
  })
})
export type Job = typeof Job.Type

/** Gives the Job's pods names, so that rank 0 is found. */
export const Service = Schema.Struct({
  apiVersion: Schema.Literal("v1"),
  kind: Schema.Literal("Service"),
  metadata: Metadata,
  spec: Schema.Struct({
    clusterIP: Schema.Literal("None"),
    publishNotReadyAddresses: Schema.Literal(true),
    selector: Labels
  })
})
export type Service = typeof Service.Type

const Replicas = Schema.Struct({
  replicas: Count,
  restartPolicy: Schema.Literals(["Always", "OnFailure", "Never", "ExitCode"]),
  template: PodTemplate
})

export const PyTorchJob = Schema.Struct({
  apiVersion: Schema.Literal("kubeflow.org/v1"),
  kind: Schema.Literal("PyTorchJob"),
  metadata: Metadata,
  spec: Schema.Struct({
    runPolicy: Schema.Struct({
      cleanPodPolicy: Schema.Literals(["None", "Running", "All"]),
      backoffLimit: Schema.Int
    }),
    pytorchReplicaSpecs: Schema.Struct({ Master: Replicas, Worker: Schema.optionalKey(Replicas) })
  })
})
export type PyTorchJob = typeof PyTorchJob.Type

/** The documents of a manifest, in their order. */
export const Manifest = Schema.Array(Schema.Union([Service, Job, PyTorchJob]))
export type Manifest = typeof Manifest.Type
