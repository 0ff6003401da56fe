/** The stage types: the program's own by name, plugins by module or package. Each module is loaded when a pipeline uses it, so that a worker starts with its own stage only. */
import { Effect, Layer } from "effect"
import { StageRegistry } from "../pipeline/StageRegistry.ts"
import type { AnyStageType } from "../pipeline/StageType.ts"

const stages: Readonly<Record<string, () => Promise<AnyStageType>>> = {
  download: async () => (await import("./Download.ts")).downloadStage,
  tokenize: async () => (await import("./Tokenize.ts")).tokenizeStage,
  "import-packed": async () => (await import("./ImportPacked.ts")).importPackedStage,
  pack: async () => (await import("./Pack.ts")).packStage,
  pretrain: async () => (await import("./Pretrain.ts")).pretrainStage,
  checkpoint: async () => (await import("./Checkpoint.ts")).checkpointStage,
  convert: async () => (await import("./Convert.ts")).convertStage,
  sft: async () => (await import("./Sft.ts")).sftStage,
  eval: async () => (await import("./Eval.ts")).evalStage,
  quantize: async () => (await import("./Quantize.ts")).quantizeStage
}

const names = Object.keys(stages)

/** Made when the first plugin is named: most pipelines have none. */
const pluginLoader = Effect.runSync(
  Effect.cached(Effect.promise(async () => (await import("../pipeline/plugin/PluginStage.ts")).makeLoader(names)))
)

export const layer = Layer.succeed(StageRegistry, {
  names,
  load: (uses, baseDirectory) => {
    const load = Object.hasOwn(stages, uses) ? stages[uses] : undefined
    return load === undefined
      ? Effect.flatMap(pluginLoader, (loadPlugin) => loadPlugin(uses, baseDirectory))
      : Effect.promise(load)
  }
})
