// Depth and normal in the middle of a picture, by an exported model and onnxruntime's C++ API.
// geometry model.onnx photo.ppm [FOCAL]     (a binary PPM, 224 x 224; its focal length in px)
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

constexpr int64_t SIDE = 224;

// [3,SIDE,SIDE] in [0,1], planes of red, green and blue; the model normalises them.
std::vector<float> read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, maximum = 0;
  file >> magic >> width >> height >> maximum;
  file.get();
  if (!file || magic != "P6" || width != SIDE || height != SIDE || maximum != 255)
    throw std::runtime_error(path + ": expected a binary PPM of 224 x 224");
  std::vector<uint8_t> bytes(3 * SIDE * SIDE);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error(path + ": ends early");
  std::vector<float> planes(bytes.size());
  for (int64_t i = 0; i < SIDE * SIDE; ++i)
    for (int64_t c = 0; c < 3; ++c) planes[c * SIDE * SIDE + i] = bytes[3 * i + c] / 255.0f;
  return planes;
}

// Cells of a map [1,C,h,w], and the number of the middle one.
std::pair<int64_t, int64_t> size(const Ort::Value& map) {
  const auto dims = map.GetTensorTypeAndShapeInfo().GetShape();
  return {dims[2] * dims[3], dims[2] / 2 * dims[3] + dims[3] / 2};
}

// What turns depth into metres of a camera with this focal length; 1 if a number is missing.
double scale_of(const Ort::Session& session, double focal) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto canonical = session.GetModelMetadata().LookupCustomMetadataMapAllocated("canonical_focal", allocator);
  if (canonical && focal <= 0) std::fprintf(stderr, "no focal length was given; %s px is assumed\n", canonical.get());
  return focal > 0 && canonical ? focal / std::atof(canonical.get()) : 1.0;
}

int run(const std::string& model, const std::string& picture, double focal) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // before the environment is made
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "geometry");
  Ort::Session session(env, model.c_str(), Ort::SessionOptions{});
  std::vector<float> pixels = read_ppm(picture);
  const std::array<int64_t, 4> shape{1, 3, SIDE, SIDE};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto frames = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* inputs[] = {"frames"};
  const char* outputs[] = {"depth", "normals"};
  auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &frames, 1, outputs, 2);

  const auto [cells, middle] = size(results[0]);
  const auto [facets, centre] = size(results[1]);
  const float* depth = results[0].GetTensorData<float>();
  const float* normals = results[1].GetTensorData<float>();
  const double scale = scale_of(session, focal);
  double sum = 0;
  for (int64_t i = 0; i < cells; ++i) sum += depth[i];
  std::printf("depth mean %.4f middle %.4f\n", scale * sum / cells, scale * depth[middle]);
  std::printf("normal %.4f %.4f %.4f\n", normals[centre], normals[facets + centre], normals[2 * facets + centre]);
  return 0;
}

int main(int count, char** arguments) {
  if (count != 3 && count != 4) {
    std::fprintf(stderr, "usage: geometry model.onnx photo.ppm [focal]\n");
    return 2;
  }
  try {
    return run(arguments[1], arguments[2], count == 4 ? std::atof(arguments[3]) : 0);
  } catch (const std::exception& error) {  // Ort::Exception is one
    std::fprintf(stderr, "geometry: %s\n", error.what());
    return 1;
  }
}
