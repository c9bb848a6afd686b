package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// Fingerprint identifies the content of a base by its size and samples. The zero value stands for
// no base.
type Fingerprint [sha256.Size]byte

// IsZero reports whether f stands for no base.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// String returns lower-case hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText implements encoding.TextMarshaler: hexadecimal digits, or nothing for the zero value.
func (f Fingerprint) MarshalText() ([]byte, error) {
	if f.IsZero() {
		return nil, nil
	}
	return []byte(f.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*f = Fingerprint{}
		return nil
	}
	var g Fingerprint
	if len(text) != hex.EncodedLen(len(g)) {
		return fmt.Errorf("fingerprint: expected %d hexadecimal digits, found %d characters",
			hex.EncodedLen(len(g)), len(text))
	}
	if _, err := hex.Decode(g[:], text); err != nil {
		return fmt.Errorf("fingerprint: %w", err)
	}
	*f = g
	return nil
}

// Samples of a fingerprint, in bytes and in number. Part of the format.
const (
	fingerprintEdge    = 64 << 10
	fingerprintSample  = 4096
	fingerprintSamples = 256
)

// ComputeFingerprint hashes, with SHA-256, size as a 64-bit little-endian number and then these
// pieces of the size bytes from offset of f, each truncated at the end: the first 64 KiB; the last
// 64 KiB; and for i from 0 to 255 the 4 KiB at 4096 × ⌊⌊size/4096⌋ × i / 256⌋. It reads at most 1.2
// MB.
func ComputeFingerprint(f vfs.File, offset, size int64) (Fingerprint, error) {
	if offset < 0 || size < 0 || offset > MaxSize || size > MaxSize {
		return Fingerprint{}, finding.New(ErrInvalid, f.Name(), "range to fingerprint",
			fmt.Sprintf("offset and size from 0 to %d", int64(MaxSize)),
			fmt.Sprintf("offset %d, size %d", offset, size), adviceParams)
	}
	sum := sha256.New()
	var le [8]byte
	binary.LittleEndian.PutUint64(le[:], uint64(size))
	sum.Write(le[:])

	buf := make([]byte, fingerprintEdge)
	add := func(start, n int64) error {
		n = min(n, size-start)
		got, err := f.ReadAt(buf[:n], offset+start)
		if err == io.EOF {
			return finding.New(ErrMismatch, f.Name(), "length",
				fmt.Sprintf("%d bytes from offset %d", size, offset),
				fmt.Sprintf("the end after %d", start+int64(got)),
				"put back the file that the layers were made on")
		}
		sum.Write(buf[:got])
		return err
	}
	if err := add(0, fingerprintEdge); err != nil {
		return Fingerprint{}, err
	}
	if err := add(max(0, size-fingerprintEdge), fingerprintEdge); err != nil {
		return Fingerprint{}, err
	}
	for i := range int64(fingerprintSamples) {
		if err := add(size/fingerprintSample*i/fingerprintSamples*fingerprintSample,
			fingerprintSample); err != nil {
			return Fingerprint{}, err
		}
	}
	return Fingerprint(sum.Sum(nil)), nil
}
