// Stand-ins for the two classes of torch that the library raises, written from their public interface:
// the same names, hence the same symbols, the same base, order of virtual functions and size.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace c10 {

struct SourceLocation {
    const char *function;
    const char *file;
    std::uint32_t line;
};

class Error : public std::exception {
public:
    Error(SourceLocation location, std::string message);
    ~Error() override;
    const char *what() const noexcept override;
    virtual const char *what_without_backtrace() const noexcept;

private:
    std::string message_;
    std::vector<std::string> context_;
    std::shared_ptr<const std::string> backtrace_;
    mutable std::atomic<std::string *> what_;
    std::string what_without_backtrace_;
    const void *caller_;
};

// As torch's: nothing of its own, so its type information and virtual table are weak symbols of every
// library that throws it, and libc10.so has neither.
class OutOfMemoryError : public Error {
    using Error::Error;
};

// How many errors have been made and not destroyed.
long live_errors();

}  // namespace c10

// Throws the class as torch's own allocator does.
[[noreturn]] void torch_out_of_memory(const char *message);
