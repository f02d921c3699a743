// What the probe is asked, and how it answers.
#pragma once

#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace axiond {

// A line "NAME sizes=B0,B1,... key=value ...", then the buffers.
class Request {
 public:
  bool read(std::istream& in) {
    std::string line, word;
    if (!std::getline(in, line)) return false;
    std::istringstream words(line);
    words >> name_;
    values_.clear();
    buffers_.clear();
    while (words >> word) values_[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
    std::istringstream sizes(values_["sizes"]);
    while (std::getline(sizes, word, ',')) {
      buffers_.emplace_back(std::stoul(word), '\0');
      in.read(&buffers_.back()[0], std::streamsize(buffers_.back().size()));
    }
    return bool(in);
  }

  const std::string& name() const { return name_; }
  std::string text(const std::string& key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? "" : found->second;
  }
  int64_t number(const std::string& key) const { return std::stoll(text(key)); }
  const std::string& data(size_t i) const {
    static const std::string none;
    return i < buffers_.size() ? buffers_[i] : none;
  }
  // Null if the buffer is empty or not there.
  template <typename T>
  const T* buffer(size_t i) const {
    return data(i).empty() ? nullptr : reinterpret_cast<const T*>(data(i).data());
  }

 private:
  std::string name_;
  std::map<std::string, std::string> values_;
  std::vector<std::string> buffers_;
};

inline void reply(const std::string& result, const std::string& kernel) {
  std::cout << "ok " << result.size() << ' ' << kernel << '\n' << result << std::flush;
}

inline void reply_if_equal(const std::string& one, const std::string& other, const std::string& kernel) {
  if (one != other) throw std::runtime_error(kernel + ": the result depends on where the buffers lie");
  reply(one, kernel);
}

}  // namespace axiond
