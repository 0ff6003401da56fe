/** Writes schemas/*.schema.json from the code: npm run schemas. A test compares what is committed with what this would write. */
import { fileURLToPath } from "node:url"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem, Layer } from "effect"
import { schemaNames, schemaText } from "../src/pipeline/file/FileSchemas.ts"
import * as registry from "../src/stages/registry.ts"

const folder = fileURLToPath(new URL("../schemas", import.meta.url))

const program = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  yield* fs.makeDirectory(folder, { recursive: true })
  for (const name of schemaNames) {
    yield* fs.writeFileString(`${folder}/${name}.schema.json`, yield* schemaText(name))
    yield* Console.log(`schemas/${name}.schema.json`)
  }
})

program.pipe(Effect.provide(Layer.merge(NodeServices.layer, registry.layer)), NodeRuntime.runMain)
