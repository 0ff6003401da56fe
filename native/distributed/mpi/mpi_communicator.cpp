#include "native/distributed/mpi/mpi_communicator.h"

#include <algorithm>
#include <cstring>

#include "native/core/error.h"
#include "native/distributed/mpi/mpi_world.h"

namespace tinyllama {
namespace {

#define CHECK_MPI(call) check_mpi((call), #call)

// MPI counts in int, so large blocks go in pieces; a piece is also what sums hold of every rank at a time.
constexpr std::size_t piece_bytes = std::size_t{16} << 20;
constexpr std::int64_t sum_floats = std::int64_t{4} << 20;  // of all ranks together: 16 MiB

// `bytes` bytes out of a block of `block` bytes: one of them from each of several blocks in a row.
class Piece {
 public:
  Piece(std::size_t bytes, std::size_t block) {
    MPI_Datatype dense = MPI_DATATYPE_NULL;
    CHECK_MPI(MPI_Type_contiguous(static_cast<int>(bytes), MPI_BYTE, &dense));
    CHECK_MPI(MPI_Type_create_resized(dense, 0, static_cast<MPI_Aint>(block), &type_));
    CHECK_MPI(MPI_Type_free(&dense));
    CHECK_MPI(MPI_Type_commit(&type_));
  }
  ~Piece() { MPI_Type_free(&type_); }
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  MPI_Datatype type() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// out(count) = the sum of `ranks` rows of `parts`, from rank 0 on: an order that depends neither on sizes nor on who came first.
void sum_rows(float* out, const float* parts, std::int64_t count, int ranks) {
  std::memcpy(out, parts, static_cast<std::size_t>(count) * sizeof(float));
  for (int r = 1; r < ranks; ++r) {
    const float* row = parts + r * count;
    for (std::int64_t i = 0; i < count; ++i) out[i] += row[i];
  }
}

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(MPI_Comm ranks) : ranks_(ranks) {
    CHECK_MPI(MPI_Comm_set_errhandler(ranks_, MPI_ERRORS_RETURN));
    CHECK_MPI(MPI_Comm_rank(ranks_, &rank_));
    CHECK_MPI(MPI_Comm_size(ranks_, &size_));
  }

  std::string name() const override { return mpi_version(); }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel) override {
    gather(out, part, bytes);
    return 0;
  }
  Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel) override;
  Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel) override;
  Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel) override;
  void wait(Ticket) override {}
  void exchange(void* all, const void* own, std::size_t bytes) override { gather(all, own, bytes); }
  std::unique_ptr<Communicator> split(const std::vector<int>& colours) override {
    MPI_Comm part = MPI_COMM_NULL;
    CHECK_MPI(MPI_Comm_split(ranks_, colours.at(static_cast<std::size_t>(rank_)), rank_, &part));
    return make_mpi_communicator(part);
  }

 private:
  void gather(void* out, const void* part, std::size_t bytes);
  void reduce_slices(float* values, std::int64_t count);
  float* scratch(std::int64_t count) {
    if (static_cast<std::int64_t>(scratch_.size()) < count) scratch_.resize(static_cast<std::size_t>(count));
    return scratch_.data();
  }

  MPI_Comm ranks_;
  int rank_ = 0, size_ = 0;
  std::vector<float> scratch_;
};

void MpiCommunicator::gather(void* out, const void* part, std::size_t bytes) {
  const bool in_place = part == static_cast<std::byte*>(out) + static_cast<std::size_t>(rank_) * bytes;
  for (std::size_t first = 0; first < bytes; first += piece_bytes) {
    const std::size_t length = std::min(piece_bytes, bytes - first);
    const Piece piece(length, bytes);
    const void* own = in_place ? MPI_IN_PLACE : static_cast<const std::byte*>(part) + first;
    CHECK_MPI(MPI_Allgather(own, static_cast<int>(length), MPI_BYTE, static_cast<std::byte*>(out) + first, 1, piece.type(), ranks_));
  }
}

Communicator::Ticket MpiCommunicator::all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel) {
  for (std::size_t first = 0; first < bytes; first += piece_bytes) {
    const Piece piece(std::min(piece_bytes, bytes - first), bytes);
    CHECK_MPI(MPI_Alltoall(static_cast<const std::byte*>(in) + first, 1, piece.type(), static_cast<std::byte*>(out) + first, 1, piece.type(),
                           ranks_));
  }
  return 0;
}

// Not MPI_Reduce_scatter: the order of its sums is its own affair.
Communicator::Ticket MpiCommunicator::reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel) {
  const std::int64_t most = std::max<std::int64_t>(1, sum_floats / size_);
  for (std::int64_t first = 0; first < count; first += most) {
    const std::int64_t length = std::min(most, count - first);
    const std::size_t bytes = static_cast<std::size_t>(length) * sizeof(float);
    const Piece piece(bytes, static_cast<std::size_t>(count) * sizeof(float));
    float* parts = scratch(length * size_);
    CHECK_MPI(MPI_Alltoall(whole + first, 1, piece.type(), parts, static_cast<int>(bytes), MPI_BYTE, ranks_));
    sum_rows(part + first, parts, length, size_);
  }
  return 0;
}

Communicator::Ticket MpiCommunicator::all_reduce(float* values, std::int64_t count, CollectiveLabel) {
  for (std::int64_t first = 0; first < count; first += sum_floats) reduce_slices(values + first, std::min(sum_floats, count - first));
  return 0;
}

// Rank r sums slice r of the values of all, then all gather the slices.
void MpiCommunicator::reduce_slices(float* values, std::int64_t count) {
  const std::int64_t slice = (count + size_ - 1) / size_;
  const std::size_t ranks = static_cast<std::size_t>(size_);
  std::vector<int> counts(ranks), places(ranks), rows(ranks);
  for (int r = 0; r < size_; ++r) {
    const std::int64_t start = std::min(count, r * slice);
    places[static_cast<std::size_t>(r)] = static_cast<int>(start);
    counts[static_cast<std::size_t>(r)] = static_cast<int>(std::min(count, start + slice) - start);
  }
  const int own = counts[static_cast<std::size_t>(rank_)];
  const std::vector<int> own_counts(ranks, own);
  for (int r = 0; r < size_; ++r) rows[static_cast<std::size_t>(r)] = r * own;
  float* parts = scratch(std::int64_t{own} * size_);
  CHECK_MPI(MPI_Alltoallv(values, counts.data(), places.data(), MPI_FLOAT, parts, own_counts.data(), rows.data(), MPI_FLOAT, ranks_));
  sum_rows(values + places[static_cast<std::size_t>(rank_)], parts, own, size_);
  CHECK_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values, counts.data(), places.data(), MPI_FLOAT, ranks_));
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm ranks) { return std::make_unique<MpiCommunicator>(ranks); }

}  // namespace tinyllama
