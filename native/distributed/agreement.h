// What must be the same on all ranks before they compute together: version, files, seed, options. Ranks that differ would not fail by themselves;
// they would train a model that no one described.
#pragma once
#include <string>
#include <vector>

#include "native/distributed/communicator.h"

namespace tinyllama {

struct AgreementField {
  std::string name;   // "seed"
  std::string value;  // "3407", or a digest
};
using Agreement = std::vector<AgreementField>;

// Empty where all agree; else every field that differs, with which ranks hold what, and the next step. by_rank[r] is rank r's.
std::string disagreement(const std::vector<Agreement>& by_rank);

std::string encode_agreement(const Agreement& agreement);
Agreement decode_agreement(const std::string& bytes);

// Throws Error with the disagreement, on every rank.
void check_agreement(Communicator& ranks, const Agreement& agreement);

}  // namespace tinyllama
