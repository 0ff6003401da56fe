/** Manifests: their fields, what is refused, and what Kubernetes' own schemas (the package kubernetes-models) say of them. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Result, Schema } from "effect"
import { parseAllDocuments } from "yaml"
import { loadPipelineText } from "../../../src/pipeline/file/Pipeline.ts"
import {
  jobName,
  kubernetesManifest,
  type ManifestOptions,
  manifestText
} from "../../../src/pipeline/manifest/KubernetesManifest.ts"
import { Job, Manifest } from "../../../src/pipeline/manifest/KubernetesSchema.ts"
import { testRegistry } from "../fixtures/stages.ts"

const stageOf = (block: string, uses = "together, with: { steps: 1 }") =>
  loadPipelineText({
    label: "p.yaml",
    text: `version: 1\nname: t\nstages:\n  Base_1: { uses: ${uses}${block} }\n`,
    baseDirectory: "."
  }).pipe(
    Effect.map(({ stages }) => {
      const [stage] = stages
      if (stage === undefined) throw new Error("no stage")
      return stage
    }),
    Effect.provide(Layer.merge(testRegistry, NodeServices.layer))
  )
const options: ManifestOptions = {
  kind: "Job",
  image: "registry/tinyllama:1",
  claim: "data",
  mount: "/workspace",
  namespace: undefined,
  arguments: ["pipeline.yaml", "-p", "big"],
  secret: "tinyllama"
}
const four = ", resources: { gpus: 4, cpus: 32, memory: 256GiB }, grace: 5m, secrets: [HF_TOKEN]"
const manifest = (block: string, more: Partial<ManifestOptions> = {}) =>
  Effect.map(stageOf(block), (stage) => kubernetesManifest(stage, { ...options, ...more }))
const made = (block: string, more?: Partial<ManifestOptions>) => Effect.map(manifest(block, more), Result.getOrThrow)

/** The classes of kubernetes-models validate against the JSON Schemas of Kubernetes' OpenAPI. */
const Models = Schema.Struct({ Job: Schema.Any, Service: Schema.Any })
const load = async (specifier: string): Promise<Readonly<Record<string, unknown>>> => {
  try {
    return await import(specifier)
  } catch {
    return {}
  }
}
const models = Schema.decodeUnknownOption(Models)({
  ...(await load("kubernetes-models/batch/v1")),
  ...(await load("kubernetes-models/v1"))
})

describe("a manifest for Kubernetes", () => {
  it.effect("is an Indexed Job with a pod a rank, which find rank 0 by the name of its service", () =>
    Effect.gen(function* () {
      const [service, job] = yield* made(four)
      assert.deepInclude(service?.metadata, { name: "tinyllama-base-1" })
      if (job?.kind !== "Job") return assert.fail("no Job")
      const { spec } = job
      assert.deepInclude(spec, { completionMode: "Indexed", completions: 4, parallelism: 4, backoffLimit: 8 })
      assert.deepInclude(spec.template.spec, {
        subdomain: "tinyllama-base-1",
        restartPolicy: "Never",
        terminationGracePeriodSeconds: 330
      })
      const [container] = spec.template.spec.containers
      assert.deepStrictEqual(container.command, [
        "tinyllama",
        "run",
        "pipeline.yaml",
        "-p",
        "big",
        "--only",
        "Base_1",
        "--plain"
      ])
      assert.deepStrictEqual(container.resources, {
        requests: { cpu: "8", memory: "65536Mi" },
        limits: { memory: "65536Mi", "nvidia.com/gpu": "1" }
      })
      const environment = Object.fromEntries(
        container.env.map((one) => [one.name, "value" in one ? one.value : one.valueFrom])
      )
      assert.deepInclude(environment, {
        WORLD_SIZE: "4",
        LOCAL_RANK: "0",
        MASTER_ADDR: "tinyllama-base-1-0.tinyllama-base-1"
      })
      assert.deepStrictEqual(environment["HF_TOKEN"], { secretKeyRef: { name: "tinyllama", key: "HF_TOKEN" } })
      // 75: saved, and to be started again without counting.
      assert.deepInclude(spec.podFailurePolicy.rules[1]?.onExitCodes, { values: [75] })
    })
  )

  it.effect("is a PyTorchJob with a master and workers, whose places the operator tells them", () =>
    Effect.gen(function* () {
      const [job] = yield* made(four, { kind: "PyTorchJob", namespace: "ml" })
      if (job?.kind !== "PyTorchJob") return assert.fail("no PyTorchJob")
      assert.strictEqual(job.metadata.namespace, "ml")
      const { Master, Worker } = job.spec.pytorchReplicaSpecs
      assert.deepStrictEqual([Master.replicas, Worker?.replicas], [1, 3])
      assert.strictEqual(Master.template.spec.containers[0].name, "pytorch")
      assert.notInclude(
        Master.template.spec.containers[0].env.map(({ name }) => name),
        "RANK"
      )
      const [alone] = yield* made("", { kind: "PyTorchJob" })
      assert.isUndefined(alone?.kind === "PyTorchJob" ? alone.spec.pytorchReplicaSpecs.Worker : "no PyTorchJob")
    })
  )

  it.effect("is YAML that reads back as it was", () =>
    Effect.gen(function* () {
      const documents = yield* made(four)
      const read: unknown = parseAllDocuments(manifestText(documents)).map((document) => document.toJS())
      assert.deepStrictEqual(read, documents)
      assert.isTrue(Schema.is(Manifest)(read))
    })
  )

  it.effect("refuses what pods cannot do, and options that no cluster takes, by name", () =>
    Effect.gen(function* () {
      const said = (block: string, more?: Partial<ManifestOptions>) =>
        Effect.map(manifest(block, more), (result) => (Result.isFailure(result) ? result.failure.message : "none"))
      assert.match(yield* said(", resources: { ranks: 3 }"), /3 ranks and 0 GPUs: ranks without a GPU speak MPI/u)
      assert.match(yield* said(", resources: { ranks: 2, gpus: 3 }"), /3 GPUs cannot be divided among 2 ranks/u)
      assert.match(yield* said("", { mount: "workspace" }), /must be an absolute path.*--mount/u)
      assert.match(yield* said("", { namespace: "Not A Label" }), /RFC 1123 label.*namespace/u)
      assert.match(yield* said("", { image: "" }), /image/u)
      assert.strictEqual(jobName("base[lr=0.001]"), "tinyllama-base-lr-0-001")
    })
  )

  it.effect("has no field beside those that the schema names", () =>
    Effect.gen(function* () {
      const [, job] = yield* made(four)
      const strict = Schema.decodeUnknownResult(Job, { onExcessProperty: "error" })
      assert.isTrue(Result.isSuccess(strict(job)))
      assert.isTrue(Result.isFailure(strict({ ...job, sepc: {} })))
    })
  )

  const validated = models._tag === "Some" ? it.effect : it.effect.skip
  const name = "is valid by the schemas of Kubernetes' own API"
  validated(models._tag === "Some" ? name : `${name} (skipped: no package kubernetes-models; npm ci)`, () =>
    Effect.gen(function* () {
      if (models._tag === "None") return
      const [service, job] = yield* made(four)
      const pods = yield* made(four, { kind: "PyTorchJob" })
      const template = pods[0]?.kind === "PyTorchJob" ? pods[0].spec.pytorchReplicaSpecs.Master.template : undefined
      new models.value.Service(service).validate()
      new models.value.Job(job).validate()
      // Of a PyTorchJob the pods are Kubernetes' own.
      const asJob = {
        ...job,
        spec: { template: { ...template, spec: { ...template?.spec, restartPolicy: "OnFailure" } } }
      }
      new models.value.Job(asJob).validate()
      assert.throws(() => new models.value.Job({ ...job, spec: { completions: "four" } }).validate())
    })
  )
})
