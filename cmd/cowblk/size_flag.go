package main

import (
	"math"
	"strconv"

	"github.com/dustin/go-humanize"

	"cowblk/cow/bytesize"
	"cowblk/cow/layer"
)

// sizeFlag is a number of bytes on the command line: 512, 4K, 20G, 1.5T. The letters, alone or with iB, are powers of
// 1024, as in qemu-img and lvcreate; with B alone, as in KB, they are powers of 1000.
type sizeFlag int64

func (s *sizeFlag) Type() string { return "SIZE" }

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *sizeFlag) Set(text string) error {
	v, err := parseSize(text, 1, math.MaxInt64)
	if err == nil {
		*s = sizeFlag(v)
	}
	return err
}

// multipleFlag is a sizeFlag that has to be a multiple of unit, and at most limit, in bytes.
type multipleFlag struct {
	*sizeFlag
	unit, limit int64
}

func (m multipleFlag) Set(text string) error {
	v, err := parseSize(text, m.unit, m.limit)
	if err == nil {
		*m.sizeFlag = sizeFlag(v)
	}
	return err
}

// sectors is a flag for the size of a disk.
func sectors(s *sizeFlag) multipleFlag { return multipleFlag{s, layer.SectorSize, layer.MaxSize} }

// parseSize is bytesize.Parse for an option.
func parseSize(text string, unit, limit int64) (int64, error) {
	v, err := bytesize.Parse(text, unit, limit)
	if err != nil {
		return 0, usageError{err}
	}
	return v, nil
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
