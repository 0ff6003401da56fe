// What the machine is and reaches, for JavaScript: instructionSet, measurePeak, measureMatmul,
// measureLossProducts.
#pragma once
#include <napi.h>

namespace tinyllama {

void register_machine(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
