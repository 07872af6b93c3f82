// A picture on its way into a deployed detector, and the boxes on their way back, as `meaning` in deploy.json says.
// Needs nothing but C++17. The same steps in Python are deploy/fitting.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    int height, width;
    std::vector<std::uint8_t> rgb;  // row by row, three bytes a pixel
};

// Reads a binary PPM file: "P6", width, height and 255 as text, then the bytes of the pixels.
inline Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int width = 0, height = 0, largest = 0;
    file >> magic >> width >> height >> largest;
    file.get();  // the one blank before the pixels
    if (!file || magic != "P6" || largest != 255 || width < 1 || height < 1 || width > 1 << 15 || height > 1 << 15)
        throw std::runtime_error(path + ": not a picture; expected a binary PPM of 8 bits, without comments");
    Picture picture{height, width, std::vector<std::uint8_t>(std::size_t(3) * height * width)};
    file.read(reinterpret_cast<char*>(picture.rgb.data()), std::streamsize(picture.rgb.size()));
    if (!file) throw std::runtime_error(path + ": ends before its last pixel");
    return picture;
}

struct Fitted {
    std::vector<std::uint8_t> planes;  // `image` of batch 1: all red, then all green, then all blue
    std::vector<float> image_hw;       // height and width without the padding
    float grew_x, grew_y;              // a box divided by these is in pixels of the picture
};

// Scales a picture by one factor so that it just fits height x width, and pads it with 0 on the right and below.
inline Fitted fit(const Picture& picture, int height, int width) {
    const double factor = std::min(double(height) / picture.height, double(width) / picture.width);
    const int h = std::max(1, int(picture.height * factor + 0.5)), w = std::max(1, int(picture.width * factor + 0.5));
    Fitted fitted{std::vector<std::uint8_t>(std::size_t(3) * height * width), {float(h), float(w)},
                  float(w) / picture.width, float(h) / picture.height};
    for (int y = 0; y < h; ++y) {
        // bilinear: the centre of every new pixel lies between the centres of two old ones
        const double from_y = std::clamp((y + 0.5) * picture.height / h - 0.5, 0.0, picture.height - 1.0);
        const int above = int(from_y), below = std::min(above + 1, picture.height - 1);
        for (int x = 0; x < w; ++x) {
            const double from_x = std::clamp((x + 0.5) * picture.width / w - 0.5, 0.0, picture.width - 1.0);
            const int left = int(from_x), right = std::min(left + 1, picture.width - 1);
            for (int channel = 0; channel < 3; ++channel) {
                const auto at = [&](int row, int column) {
                    return double(picture.rgb[(std::size_t(row) * picture.width + column) * 3 + channel]);
                };
                const double upper = at(above, left) + (from_x - left) * (at(above, right) - at(above, left));
                const double lower = at(below, left) + (from_x - left) * (at(below, right) - at(below, left));
                const double value = upper + (from_y - above) * (lower - upper);
                fitted.planes[(std::size_t(channel) * height + y) * width + x] = std::uint8_t(std::lround(value));
            }
        }
    }
    return fitted;
}

// Repeats one picture's values until the batch is full.
template <typename T, typename U>
std::vector<T> repeated(const std::vector<U>& values, std::size_t batch) {
    std::vector<T> all;
    for (std::size_t i = 0; i < batch; ++i) all.insert(all.end(), values.begin(), values.end());
    return all;
}

// The names in `classes` of deploy.json, as they are written there.
inline std::vector<std::string> class_names(const std::string& folder) {
    std::ifstream file(folder + "/deploy.json", std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    std::size_t at = text.find('[', std::min(text.find("\"classes\""), text.size()));
    std::vector<std::string> names;
    for (; at < text.size() && text[at] != ']'; ++at) {
        if (text[at] != '"') continue;
        std::string name;
        for (++at; at < text.size() && text[at] != '"'; ++at) {
            if (text[at] == '\\') name += text[at++];  // what follows a backslash ends no name
            if (at < text.size()) name += text[at];
        }
        names.push_back(name);
    }
    if (names.empty()) throw std::runtime_error(folder + "/deploy.json: no classes; expected a deployed folder");
    return names;
}

// Prints name, score, left, top, right and bottom of every box, in pixels of the picture.
inline void print_boxes(const float* boxes_xyxy, const float* scores, const std::int64_t* labels, std::size_t count,
                        const Fitted& fitted, const std::vector<std::string>& names, float min_score) {
    for (std::size_t i = 0; i < count; ++i) {
        if (labels[i] < 0 || scores[i] < min_score) continue;  // -1 marks an unused place
        const float* box = boxes_xyxy + 4 * i;
        std::printf("%s %.4f %.2f %.2f %.2f %.2f\n", names.at(std::size_t(labels[i])).c_str(), scores[i],
                    box[0] / fitted.grew_x, box[1] / fitted.grew_y, box[2] / fitted.grew_x, box[3] / fitted.grew_y);
    }
}
