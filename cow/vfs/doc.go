// Package vfs is the only way in which the cow packages and the store reach
// files: a small positional-I/O interface over regular files and block
// devices, and the handful of directory operations that crash-safe metadata
// needs. Everything above it can therefore run on files that fail, tear writes
// or lose power, which is how durability is proven.
//
// OS is the real implementation. Its Preadv and Pwritev hand the caller's
// iovec array to the kernel as it is: no allocation and no copy, so guest
// memory goes straight to and from the page cache.
package vfs
