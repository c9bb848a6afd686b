//go:build 386 || amd64 || arm || arm64 || loong64 || mipsle || mips64le || ppc64le || riscv64

// Package word accesses the 16-bit fields of a virtqueue that both sides use at the same time. Go
// has no 16-bit atomics, so a field is read or written through the aligned 32-bit word that
// contains it. Rings are little-endian (virtio 1.2, 2.4) and so are the words, hence the list of
// architectures.
//
// Offsets are in bytes from p[0]; p[0] must be 4-byte aligned, and the whole word must lie within
// p. Go's atomics are sequentially consistent: a Load is an acquire, a Store a release, and a Store
// (or Store16) is not passed by a later Load, which is the full barrier that notification
// suppression needs.
package word
