package main

import (
	"math"
	"strings"
	"testing"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "512B": 512, "512b": 512, "4K": 4096, "4k": 4096, "4KiB": 4096,
		"4kib": 4096, "4KB": 4000, "20G": 20 << 30,
		"1.5G": 3 << 29, "1.5T": 3 << 39, "1T": 1 << 40, "0.5K": 512, "00.50k": 512,
		"9007199254740993": 9007199254740993,
		"1 G":              1 << 30, "7E": 7 << 60, "9223372036854775807": 1<<63 - 1, "1.0": 1,
		"1.000G": 1 << 30,
	} {
		var s sizeFlag
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
	}
}

// An invalid size is refused with the reason, and changes nothing.
func TestSizesRefused(t *testing.T) {
	for text, says := range map[string]string{
		"":     "not a size",
		"1,5G": "a comma is not a decimal point", "1,000": "a comma", "1,": "a comma",
		"-1": "negative", "-1G": "negative", "-0.5K": "negative",
		"G": "not a size", "1X": "not a size", "1.5.5G": "not a size", ".5G": "not a size",
		"1.G": "not a size", "1e9": "not a size",
		"0x10": "not a size", "+5": "not a size", "5 5": "not a size", " 5": "not a size",
		"5\n": "not a size", "５G": "not a size",
		"5GG": "not a size", "5iB": "not a size", "NaN": "not a size", "inf": "not a size",
		"1_000": "not a size", "5Z": "not a size",
		"8E": "too large", "99999E": "too large", "9223372036854775808": "too large",
		strings.Repeat("9", 5000): "not a size",
		"1.5":                     "not a multiple of whole bytes; the nearest sizes are 1 and 2",
		"1.1G":                    "the nearest sizes are 1181116006 and 1181116007",
	} {
		s := sizeFlag(42)
		if err := s.Set(text); err == nil || !strings.Contains(err.Error(), says) || s != 42 ||
			exitCode(err) != exitUsage {
			t.Errorf("%.20q: %d, %v; expected an error with %q", text, s, err, says)
		}
	}
}

// The size of a disk is a multiple of 512. Other sizes are refused with the nearest valid ones.
func TestNearestSizes(t *testing.T) {
	for text, nearest := range map[string][]string{
		"1.1G":    {"1181115904", "1181116416"},
		"1000":    {"512", "1024"},
		"1.5":     {"512"},
		"511":     {"512"},
		"0.3K":    {"512"},
		"1025":    {"1024", "1536"},
		"1048577": {"1048576", "1049088"},
		// 1E, the largest disk
		"1152921504606846975": {"1152921504606846464", "1152921504606846976"},
	} {
		var size sizeFlag
		err := sectors(&size).Set(text)
		if err == nil {
			t.Fatalf("%q was accepted as %d", text, size)
		}
		_, list, _ := strings.Cut(strings.Replace(err.Error(), "size is", "sizes are", 1),
			"the nearest sizes are ")
		if got := strings.Split(list, " and "); strings.Join(got, ",") != strings.Join(nearest,
			",") {
			t.Errorf("%q: nearest %q, want %q", text, got, nearest)
		}
		for _, n := range nearest {
			if err := sectors(&size).Set(n); err != nil || size%512 != 0 || size == 0 {
				t.Errorf("%q, the nearest to %q: %v", n, text, err)
			}
		}
	}
	var memory sizeFlag
	if err := (multipleFlag{&memory, 1 << 20, math.MaxInt64}).Set("1.1G"); err == nil ||
		!strings.Contains(err.Error(), "1126M and 1127M") {
		t.Errorf("memory: %v", err)
	}
}

// A size out of range is refused with the nearest valid size.
func TestSizesOverLargestDisk(t *testing.T) {
	for _, text := range []string{"9223372036854775807", "9E", "1152921504606846977", "1.1E", "2E",
		"8E"} {
		var size sizeFlag
		err := sectors(&size).Set(text)
		if err == nil || !strings.Contains(err.Error(), "at most 1152921504606846976 bytes (1E)") ||
			strings.Contains(err.Error(), "nearest") {
			t.Errorf("%q: %v", text, err)
		}
	}
	var size sizeFlag
	if err := sectors(&size).Set("1E"); err != nil || size != 1<<60 {
		t.Errorf("1E: %d, %v", size, err)
	}
}

// All options for an amount of space have the syntax of a disk's size.
func TestThresholdsAreSizes(t *testing.T) {
	for _, text := range []string{"1,5G", "6,8G", "1.5", "0", "0%", "5,5%", "1.1G"} {
		for _, args := range [][]string{{"watch", "--threshold", text},
			{"serve", "vm1", "--space-low", text}} {
			if code, output := runOutcome(t.TempDir(), args...); code != exitUsage ||
				!strings.Contains(output, args[len(args)-2]) {
				t.Errorf("%q: code %d, %s", args, code, output)
			}
		}
	}
}
