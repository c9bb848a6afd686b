package main

import (
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

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
	v, err := parseSize(text, 1)
	if err == nil {
		*s = sizeFlag(v)
	}
	return err
}

// multipleFlag is a sizeFlag that has to be a multiple of unit, in bytes.
type multipleFlag struct {
	*sizeFlag
	unit int64
}

func (m multipleFlag) Set(text string) error {
	v, err := parseSize(text, m.unit)
	if err == nil {
		*m.sizeFlag = sizeFlag(v)
	}
	return err
}

// sectors is a flag for the size of a disk.
func sectors(s *sizeFlag) multipleFlag { return multipleFlag{s, layer.SectorSize} }

var sizeText = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?(?:([bB])|([kKmMgGtTpPeE])(iB|ib|IB|B|b)?)?$`)

// sizeDigits bounds the length of a number: far more digits than any size has.
const sizeDigits = 64

// parseSize reads a size that has to be a multiple of unit bytes. All of it is exact: 1.1G, which is no whole number of
// bytes, is refused with the two nearest sizes.
func parseSize(text string, unit int64) (int64, error) {
	m := sizeText.FindStringSubmatch(text)
	switch {
	case strings.Contains(text, ","):
		return 0, usagef("%q is not a size: a comma is not a decimal point, and digits are not grouped; write 1.5G or 1500M", text)
	case strings.HasPrefix(text, "-"):
		return 0, usagef("%q is not a size: it is negative", text)
	case m == nil || len(m[1]) > sizeDigits:
		return 0, usagef("%q is not a size; examples: 512, 4K, 20G, 1.5T", text)
	}
	size, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, usagef("%q is not a size; examples: 512, 4K, 20G, 1.5T", text)
	}
	if m[3] != "" {
		base := int64(1024)
		if strings.EqualFold(m[4], "B") {
			base = 1000
		}
		power := int64(strings.Index("KMGTPE", strings.ToUpper(m[3])) + 1)
		size.Mul(size, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(power), nil)))
	}
	if size.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0 {
		return 0, usagef("%q is too large: a size has at most %d bytes (8E - 1)", text, int64(math.MaxInt64))
	}
	units := new(big.Rat).Quo(size, new(big.Rat).SetInt64(unit))
	if units.IsInt() {
		return units.Num().Int64() * unit, nil
	}
	below := new(big.Int).Quo(units.Num(), units.Denom()).Int64() * unit
	write := func(n int64) string { return strconv.FormatInt(n, 10) }
	if unit >= 1<<20 {
		write = exactText
	}
	nearest := write(below)
	if below == 0 {
		nearest = ""
	}
	if below <= math.MaxInt64-unit {
		if nearest != "" {
			nearest += " and "
		}
		nearest += write(below + unit)
	}
	of := countText(unit, "byte")
	if unit == 1 {
		of = "whole bytes"
	}
	are := "size is"
	if strings.Contains(nearest, " and ") {
		are = "sizes are"
	}
	return 0, usagef("%q is not a multiple of %s; the nearest %s %s", text, of, are, nearest)
}

// exactText writes a size in the form that parseSize reads: with the largest letter that makes a whole number.
func exactText(n int64) string {
	const letters = "KMGTPE"
	letter := ""
	for i := 0; i < len(letters) && n != 0 && n%1024 == 0; i++ {
		n, letter = n/1024, letters[i:i+1]
	}
	return strconv.FormatInt(n, 10) + letter
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
