// What both programs take: MODEL SHAPE INPUT, e.g. model.pt 2,1,8,8 input.f32 (raw float32 values).
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Arguments {
    std::string model;
    std::vector<int64_t> shape;
    std::vector<float> values;
};

inline Arguments parse(int argc, char** argv) {
    if (argc != 4) throw std::runtime_error("usage: " + std::string(argv[0]) + " MODEL 2,1,8,8 INPUT.f32");
    Arguments found{argv[1], {}, {}};
    size_t count = 1;
    std::stringstream sizes(argv[2]);
    for (std::string size; std::getline(sizes, size, ',');) {
        found.shape.push_back(std::stoll(size));
        count *= found.shape.back();
    }
    found.values.resize(count);
    std::ifstream file(argv[3], std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(found.values.data()), count * sizeof(float)))
        throw std::runtime_error(std::string(argv[3]) + " does not hold " + std::to_string(count) + " float32 values");
    return found;
}

inline void print(const float* values, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++)
            std::printf("%.9g%c", values[row * columns + column], column + 1 < columns ? ' ' : '\n');
}

template <typename Program>
int guarded(Program program, int argc, char** argv) {
    try {
        program(parse(argc, argv));
        return 0;
    } catch (const std::exception& error) {
        std::string said = error.what();
        std::fprintf(stderr, "error: %s\n", said.substr(0, said.find('\n')).c_str());
        return 2;
    }
}
