package bytesize

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

var form = regexp.MustCompile(
	`^([0-9]+(?:\.[0-9]+)?) ?(?:([bB])|([kKmMgGtTpPeE])(iB|ib|IB|B|b)?)?$`)

// maxDigits bounds the length of a number: far more digits than any size has.
const maxDigits = 64

const letters = "KMGTPE"

// Parse parses a number of bytes that must be a multiple of unit and at most limit. The letters,
// alone or with iB, are powers of 1024, as in qemu-img and lvcreate; with B alone, as in KB, they
// are powers of 1000. The result is exact: 1.1G, which is no whole number of bytes, is refused with
// the two nearest sizes.
func Parse(text string, unit, limit int64) (int64, error) {
	m := form.FindStringSubmatch(text)
	switch {
	case strings.Contains(text, ","):
		return 0, fmt.Errorf("%q is not a size: a comma is not a decimal point, and digits are not grouped; write 1.5G or 1500M", text)
	case strings.HasPrefix(text, "-"):
		return 0, fmt.Errorf("%q is not a size: it is negative", text)
	case m == nil || len(m[1]) > maxDigits:
		return 0, fmt.Errorf("%q is not a size; examples: 512, 4K, 20G, 1.5T", text)
	}
	size, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("%q is not a size; examples: 512, 4K, 20G, 1.5T", text)
	}
	if m[3] != "" {
		base := int64(1024)
		if strings.EqualFold(m[4], "B") {
			base = 1000
		}
		power := int64(strings.Index(letters, strings.ToUpper(m[3])) + 1)
		size.Mul(size, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(power),
			nil)))
	}
	if size.Cmp(new(big.Rat).SetInt64(limit)) > 0 {
		return 0, fmt.Errorf("%q is too large: at most %d bytes (%s) are possible", text, limit,
			limitText(limit))
	}
	units := new(big.Rat).Quo(size, new(big.Rat).SetInt64(unit))
	if units.IsInt() {
		return units.Num().Int64() * unit, nil
	}
	return 0, notMultiple(text, new(big.Int).Quo(units.Num(), units.Denom()).Int64()*unit, unit,
		limit)
}

// notMultiple names the valid sizes nearest to text, which is between below and below + unit.
func notMultiple(text string, below, unit, limit int64) error {
	write := func(n int64) string { return strconv.FormatInt(n, 10) }
	if unit >= 1<<20 {
		write = Text
	}
	var nearest []string
	if below > 0 {
		nearest = append(nearest, write(below))
	}
	if below <= limit-unit {
		nearest = append(nearest, write(below+unit))
	}
	of := humanize.Comma(unit) + " bytes"
	if unit == 1 {
		of = "whole bytes"
	}
	are := "size is"
	if len(nearest) > 1 {
		are = "sizes are"
	}
	return fmt.Errorf("%q is not a multiple of %s; the nearest %s %s", text, of, are,
		strings.Join(nearest, " and "))
}

// limitText returns a limit in the largest unit: 1E, or 8E - 1.
func limitText(n int64) string {
	if short := Text(n); len(short) < 8 {
		return short
	}
	return "8E - 1"
}

// Text formats a size as Parse reads it, with the largest letter that gives a whole number.
func Text(n int64) string {
	letter := ""
	for i := 0; i < len(letters) && n != 0 && n%1024 == 0; i++ {
		n, letter = n/1024, letters[i:i+1]
	}
	return strconv.FormatInt(n, 10) + letter
}
