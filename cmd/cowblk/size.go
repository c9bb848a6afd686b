package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// sizeFlag is a number of bytes on the command line: 512, 4K, 20G, 1.5T. A bare letter and KiB, MiB, ... are powers
// of 1024, as in qemu-img and lvcreate; KB, MB, ... are powers of 1000.
type sizeFlag int64

func (s *sizeFlag) Type() string { return "SIZE" }

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *sizeFlag) Set(text string) error {
	t := text
	if n := len(t); n > 1 && strings.ContainsRune("KMGTPEkmgtpe", rune(t[n-1])) {
		t += "iB"
	}
	// humanize works in floating point: whole numbers of bytes go the exact way.
	if v, err := strconv.ParseUint(t, 10, 63); err == nil {
		*s = sizeFlag(v)
		return nil
	}
	v, err := humanize.ParseBytes(t)
	if err != nil || v > math.MaxInt64 || strings.HasPrefix(t, "-") {
		return usagef("%q is not a size; examples: 512, 4K, 20G, 1.5T", text)
	}
	*s = sizeFlag(v)
	return nil
}

// bytesText is n bytes for a person, in powers of 1024: "20 GiB".
func bytesText(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

// countText is "1 block", "3 blocks", "8,385,866 blocks".
func countText(n int64, unit string) string {
	if n != 1 {
		unit += "s"
	}
	return humanize.Comma(n) + " " + unit
}
