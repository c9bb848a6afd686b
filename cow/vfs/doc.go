// Package vfs is how the cow packages and the store use files: a small interface for positional I/O
// on regular files and block devices, and the directory operations that crash-safe metadata needs.
// Everything above it can therefore run on files that fail, tear writes or lose power, which is how
// durability is tested.
//
// OS is the real implementation. Its Preadv and Pwritev pass the caller's iovec array to the
// kernel, without allocation or copy, so that guest memory goes straight to and from the page
// cache.
package vfs
