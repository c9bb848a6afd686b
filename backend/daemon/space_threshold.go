package daemon

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"cowblk/cow/bytesize"
)

// DefaultSpaceLow is the default threshold of free space.
const DefaultSpaceLow = "5%"

// Threshold is an amount of free space, absolute or as a share of a file system's size. No free
// space is below the zero value.
type Threshold struct {
	text    string
	bytes   int64
	percent float64
}

var percentForm = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,20})?%$`)

// ParseThreshold parses "5%", a number of bytes in the form of bytesize.Parse (10G, of 1024), or
// "off". It refuses zero.
func ParseThreshold(s string) (Threshold, error) {
	if s == "off" {
		return Threshold{}, nil
	}
	return parseSpace(s, "5%, 10G, or off")
}

// ParseSpace is ParseThreshold without "off".
func ParseSpace(s string) (Threshold, error) { return parseSpace(s, "5% or 10G") }

func parseSpace(s, examples string) (Threshold, error) {
	t := Threshold{text: s}
	switch {
	case s == "off": // as zero
	case strings.HasSuffix(s, "%"):
		p, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !percentForm.MatchString(s) || p > 100 {
			return Threshold{}, fmt.Errorf(
				"%q is no part of a file system; expected 100%% or less, such as 5%% or 0.5%%", s)
		}
		t.percent = p
	default:
		v, err := bytesize.Parse(s, 1, math.MaxInt64)
		if err != nil {
			return Threshold{}, fmt.Errorf(
				"%w\nexpected an amount of free space such as %s", err, examples)
		}
		t.bytes = v
	}
	if t.percent == 0 && t.bytes == 0 {
		return Threshold{}, fmt.Errorf("%q: nothing would ever be low; "+
			"expected an amount of free space such as %s", s, examples)
	}
	return t, nil
}

// String returns text that ParseThreshold parses to the same threshold.
func (t Threshold) String() string {
	if t == (Threshold{}) {
		return "off"
	}
	return t.text
}

// of returns the threshold in bytes on a file system of total bytes.
func (t Threshold) of(total int64) int64 {
	return max(t.bytes, int64(float64(total)*t.percent/100))
}

// fileShare is the threshold of free files in percent where the threshold of space is in bytes.
const fileShare = 5

// files returns f with its threshold.
func (t Threshold) files(f Files) Files {
	share := t.percent
	if share == 0 && t.bytes > 0 {
		share = fileShare
	}
	f.Least = int64(math.Ceil(float64(f.Total) * share / 100))
	return f
}
