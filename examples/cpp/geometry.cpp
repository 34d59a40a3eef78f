// Depth and normal in the middle of a picture, by an exported model and onnxruntime's C++ API.
// geometry model.onnx photo.ppm        (a binary PPM, 224 x 224)
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
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

int run(const std::string& model, const std::string& picture) {
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

  const auto dims = results[0].GetTensorTypeAndShapeInfo().GetShape();  // 1, 1, h, w
  const int64_t cells = dims[2] * dims[3], middle = dims[2] / 2 * dims[3] + dims[3] / 2;
  const float* depth = results[0].GetTensorData<float>();
  const float* normals = results[1].GetTensorData<float>();
  double sum = 0;
  for (int64_t i = 0; i < cells; ++i) sum += depth[i];
  std::printf("depth mean %.4f middle %.4f\n", sum / cells, depth[middle]);
  std::printf("normal %.4f %.4f %.4f\n", normals[middle], normals[cells + middle], normals[2 * cells + middle]);
  return 0;
}

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: geometry model.onnx photo.ppm\n");
    return 2;
  }
  try {
    return run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {  // Ort::Exception is one
    std::fprintf(stderr, "geometry: %s\n", error.what());
    return 1;
  }
}
