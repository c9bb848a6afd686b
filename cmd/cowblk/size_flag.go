package main

import (
	"math"
	"strconv"

	"github.com/dustin/go-humanize"

	"cowblk/cow/bytesize"
	"cowblk/cow/layer"
)

// sizeFlag is a number of bytes: 512, 4K, 20G, 1.5T. The suffixes K, KiB and so on are powers of
// 1024, as in qemu-img and lvcreate; KB and so on are powers of 1000.
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

// multipleFlag is a sizeFlag that must be a multiple of unit and at most limit, in bytes.
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

// sectors is a flag for the size of a disk, a multiple of 512 bytes.
func sectors(s *sizeFlag) multipleFlag { return multipleFlag{s, layer.SectorSize, layer.MaxSize} }

// parseSize is bytesize.Parse with a usageError.
func parseSize(text string, unit, limit int64) (int64, error) {
	v, err := bytesize.Parse(text, unit, limit)
	if err != nil {
		return 0, usageError{err}
	}
	return v, nil
}

// bytesText formats n bytes in powers of 1024: "20 GiB".
func bytesText(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

// countText returns for example "1 block" or "8,385,866 blocks".
func countText(n int64, unit string) string {
	if n != 1 {
		unit += "s"
	}
	return humanize.Comma(n) + " " + unit
}
