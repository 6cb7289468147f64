#include "exception.h"

namespace {
std::atomic<long> live{0};
}

namespace c10 {

// 128 bytes in torch 2.x: the library's exception objects must have room for them.
static_assert(sizeof(Error) == 128);

Error::Error(SourceLocation location, std::string message)
    : message_(std::move(message)), what_(nullptr), caller_(nullptr) {
    context_.push_back(std::string(location.function) + " at " + location.file + ":" +
                       std::to_string(location.line));
    backtrace_ = std::make_shared<const std::string>("no backtrace");
    what_without_backtrace_ = message_;
    live++;
}

Error::~Error() {
    delete what_.load();
    live--;
}

const char *Error::what() const noexcept {
    if (what_.load() == nullptr) {
        what_.store(new std::string(message_ + "\nraised from " + context_.front()));
    }
    return what_.load()->c_str();
}

const char *Error::what_without_backtrace() const noexcept { return what_without_backtrace_.c_str(); }

long live_errors() { return live; }

}  // namespace c10
