/** Rules about profiles: overlays of what is not there, and overlays that change nothing. */
import { canonicalJson } from "../../../artifacts/CanonicalJson.ts"
import { suggest } from "../Overlay.ts"
import { type Node, toJson } from "../YamlSource.ts"
import { type Finding, finding, mapping, type Rule } from "./Finding.ts"

export const profileUnknown: Rule = ({ root }) =>
  Array.from(mapping(root, "profiles")).flatMap(([profile, { value }]) => {
    const stages = mapping(root, "stages")
    const vars = mapping(root, "vars")
    const ofStages = Array.from(mapping(value, "stages")).flatMap(([name, overlay]) =>
      stages.has(name) || mapping(overlay.value).has("uses")
        ? []
        : [
            finding(
              "profile-unknown-stage",
              overlay.key,
              `profiles.${profile}.stages.${name}`,
              `the file has no stage "${name}" to change`,
              "correct the name, or give the stage a type with uses",
              suggest(name, stages.keys())
            )
          ]
    )
    const ofVariables = Array.from(mapping(value, "vars")).flatMap(([name, overlay]) =>
      vars.has(name)
        ? []
        : [
            finding(
              "profile-unknown-variable",
              overlay.key,
              `profiles.${profile}.vars.${name}`,
              `the file has no variable "${name}" to change`,
              "correct the name, or declare the variable in vars",
              suggest(name, vars.keys())
            )
          ]
    )
    return [...ofStages, ...ofVariables]
  })

export const profileWithoutEffect: Rule = ({ root }) => {
  const same = (overlay: Node, base: Node, path: string): ReadonlyArray<Finding> => {
    if (overlay._tag === "mapping" && base._tag === "mapping")
      return Array.from(overlay.entries).flatMap(([key, { value }]) => {
        const below = base.entries.get(key)
        return below === undefined ? [] : same(value, below.value, `${path}.${key}`)
      })
    if (canonicalJson(toJson(overlay)) !== canonicalJson(toJson(base))) return []
    const message = "the file has this value without the profile"
    return [finding("profile-no-effect", overlay.span, path, message, "remove it, or change it")]
  }
  return Array.from(mapping(root, "profiles")).flatMap(([profile, { value }]) =>
    same(value, root, `profiles.${profile}`)
  )
}
