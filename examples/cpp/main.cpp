// A bundle's model in C++: the golden input through ONNX Runtime, the five likeliest classes, and how far the logits are
// from the golden output.
//
//   golden BUNDLE/models/fp32/r50.onnx BUNDLE/goldens/input.npy BUNDLE/goldens/reference.npy MIN_DB [BUNDLE/labels.txt]
//
// MIN_DB is min_sqnr_db of the model's row for onnxruntime in manifest.json. Exit codes: 0 within it, 1 not, 2 unusable input.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> values;

  int64_t row_size() const { return shape.at(0) ? static_cast<int64_t>(values.size()) / shape[0] : 0; }
};

std::string between(const std::string& text, const std::string& begin, char end) {
  const auto from = text.find(begin);
  if (from == std::string::npos) throw std::runtime_error("no " + begin + " in the header of an array");
  const auto to = text.find(end, from + begin.size());
  return text.substr(from + begin.size(), to - from - begin.size());
}

// numpy's format: "\x93NUMPY", two bytes of version, the header's length, a Python dictionary as text, the values.
Array read_npy(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string data((std::istreambuf_iterator<char>(stream)), {});
  if (data.size() < 12 || data.compare(0, 6, "\x93NUMPY") != 0) throw std::runtime_error(path + " is no .npy file");
  const auto byte = [&](size_t place) { return static_cast<size_t>(static_cast<unsigned char>(data[place])); };
  const bool is_long = data[6] > 1;
  const size_t start = is_long ? 12 : 10;
  size_t length = byte(8) | byte(9) << 8;
  if (is_long) length |= byte(10) << 16 | byte(11) << 24;
  if (length > data.size() - start) throw std::runtime_error(path + " is cut short");
  const std::string header = data.substr(start, length);
  if (header.find("'<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos)
    throw std::runtime_error(path + " holds no float32 in C order: " + header);
  Array array;
  const std::string sides = between(header, "'shape': (", ')');
  size_t count = 1;
  for (size_t place = 0; place < sides.size();) {
    const auto comma = std::min(sides.find(',', place), sides.size());
    const std::string side = sides.substr(place, comma - place);
    if (side.find_first_of("0123456789") != std::string::npos) {
      array.shape.push_back(std::stoll(side));
      count *= static_cast<size_t>(array.shape.back());
    }
    place = comma + 1;
  }
  const size_t bytes = data.size() - start - length;
  if (array.shape.empty() || bytes != count * sizeof(float))
    throw std::runtime_error(path + " does not hold as many values as its header says");
  array.values.resize(count);
  std::copy_n(data.data() + start + length, bytes, reinterpret_cast<char*>(array.values.data()));
  return array;
}

std::vector<std::string> read_labels(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) throw std::runtime_error(path + " cannot be read");
  std::vector<std::string> labels;
  for (std::string line; std::getline(stream, line);) labels.push_back(line);
  return labels;
}

// The images through the model, as many at a time as it takes; what is too few for a fixed batch is filled up.
Array run(Ort::Session& session, Array& images) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input_name = session.GetInputNameAllocated(0, allocator);
  const auto output_name = session.GetOutputNameAllocated(0, allocator);
  const char* inputs[] = {input_name.get()};
  const char* outputs[] = {output_name.get()};
  const auto type = session.GetInputTypeInfo(0);  // the next line gives a view of it
  const auto declared = type.GetTensorTypeAndShapeInfo();
  if (declared.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    throw std::runtime_error("the model takes no float32: give one with float32 input");
  const int64_t fixed = declared.GetShape().at(0);
  const int64_t batch = fixed > 0 ? fixed : images.shape[0];
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  Array logits;
  std::vector<int64_t> shape = images.shape;
  shape[0] = batch;
  const int64_t image = images.row_size();
  for (int64_t first = 0; first < images.shape[0]; first += batch) {
    const int64_t taken = std::min(batch, images.shape[0] - first);
    std::vector<float> piece(static_cast<size_t>(batch * image));
    for (int64_t row = 0; row < batch; ++row)
      std::copy_n(images.values.begin() + (first + std::min(row, taken - 1)) * image, image, piece.begin() + row * image);
    auto tensor = Ort::Value::CreateTensor<float>(memory, piece.data(), piece.size(), shape.data(), shape.size());
    auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
    const auto info = results[0].GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || info.GetShape().size() != 2)
      throw std::runtime_error("the model gives no float32 [N, classes]");
    logits.shape = {images.shape[0], info.GetShape()[1]};
    const float* values = results[0].GetTensorData<float>();
    logits.values.insert(logits.values.end(), values, values + taken * logits.shape[1]);
  }
  return logits;
}

void print_top(const Array& logits, const std::vector<std::string>& labels) {
  const int64_t classes = logits.shape[1];
  for (int64_t row = 0; row < logits.shape[0]; ++row) {
    const float* values = logits.values.data() + row * classes;
    const double largest = *std::max_element(values, values + classes);
    double sum = 0;
    for (int64_t index = 0; index < classes; ++index) sum += std::exp(values[index] - largest);
    std::vector<int64_t> order(static_cast<size_t>(classes));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
    std::printf("image %lld:", static_cast<long long>(row));
    for (int64_t place = 0; place < std::min<int64_t>(5, classes); ++place) {
      const auto index = static_cast<size_t>(order[static_cast<size_t>(place)]);
      const std::string name = index < labels.size() ? labels[index] : std::to_string(index);
      std::printf("  %s %.3f", name.c_str(), std::exp(values[index] - largest) / sum);
    }
    std::printf("\n");
  }
}

// Signal to noise in decibels, the golden being the signal; NaN and Inf are below every bound.
double sqnr_db(const Array& golden, const Array& logits) {
  if (golden.shape != logits.shape) throw std::runtime_error("the model gives another shape than the golden has");
  double signal = 0, noise = 0;
  for (size_t index = 0; index < golden.values.size(); ++index) {
    const double expected = golden.values[index], error = expected - logits.values[index];
    if (!std::isfinite(error)) return -std::numeric_limits<double>::infinity();
    signal += expected * expected;
    noise += error * error;
  }
  return noise == 0 ? 300 : std::min(300.0, 10 * std::log10(signal / noise));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5 || count > 6) {
    std::fprintf(stderr, "usage: %s MODEL.onnx INPUT.npy GOLDEN.npy MIN_DB [LABELS.txt]\n", arguments[0]);
    return 2;
  }
  try {
    Array images = read_npy(arguments[2]);
    const Array golden = read_npy(arguments[3]);
    const double least = std::stod(arguments[4]);
    const auto labels = count > 5 ? read_labels(arguments[5]) : std::vector<std::string>{};
    if (images.shape.size() != 4 || images.shape[0] < 1) throw std::runtime_error("the input is not [N, C, H, W]");

    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "golden");
    Ort::Session session(environment, arguments[1], Ort::SessionOptions{});
    const Array logits = run(session, images);
    print_top(logits, labels);
    const double found = sqnr_db(golden, logits);
    std::printf("%.1f dB against the golden output, at least %.1f required\n", found, least);
    return found >= least ? 0 : 1;
  } catch (const std::exception& error) {  // Ort::Exception is one
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
