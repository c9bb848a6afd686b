package daemon

import (
	"log/slog"
	"math"
	"testing"

	"cowblk/internal/test"
)

func TestParseThreshold(t *testing.T) {
	const total = 1000 << 30
	for in, want := range map[string]int64{
		"off": 0, "5%": 50 << 30, "0.5%": 5 << 30, "100%": total, "10G": 10 << 30,
		"10GiB": 10 << 30, "10g": 10 << 30, "4096": 4096,
		"": -1, "%": -1, "-1%": -1, "101%": -1, "NaN%": -1, "-5": -1, "G": -1, "ten": -1, "5 %": -1,
		"99999999999G": -1,
		"1.5G":         3 << 29, "1 G": 1 << 30, "10KB": 10000, "5.0%": 50 << 30,
		"0": -1, "0%": -1, "0.0%": -1, "0K": -1, "1,5G": -1, "6,8G": -1, "1,000": -1, "5,5%": -1,
		"1.5": -1, "1.1G": -1, "0x1p3%": -1, "1e1%": -1,
		"+5%": -1, "+5": -1, "1e9": -1, "1_0%": -1, "Inf%": -1, " 5": -1, "5\n": -1, "8E": -1,
		"OFF": -1,
	} {
		got, err := ParseThreshold(in)
		if (err == nil) != (want >= 0) {
			t.Errorf("ParseThreshold(%q): %v", in, err)
			continue
		}
		if err != nil {
			continue
		}
		if got.of(total) != want {
			t.Errorf("%q of %d is %d, want %d", in, int64(total), got.of(total), want)
		}
		if again, err := ParseThreshold(got.String()); err != nil || again != got {
			t.Errorf("%q: %v becomes %v, %v", in, got, again, err)
		}
	}
}

func TestSpaceLow(t *testing.T) {
	var log test.Log
	d := quietDaemon(t, &log, HookOptions{})
	now := fsSpace{id: 1, total: 1000}
	d.space.statfs = func(string) (fsSpace, bool) { return now, true }
	set := func(s string) {
		limit, err := ParseThreshold(s)
		test.Must(t, err)
		d.space.setLimit(limit)
	}
	look := func(free int64, want string) {
		t.Helper()
		before := len(log.Records())
		now.free = free
		d.space.checkLow()
		told := ""
		for _, r := range log.Records()[before:] {
			told = map[slog.Level]string{slog.LevelWarn: "low", slog.LevelInfo: "over"}[r.Level]
		}
		if told != want {
			t.Errorf("%d free: %q, want %q\n%s", free, told, want, &log)
		}
	}
	look(0, "") // off
	set("10%")
	look(100, "")
	look(99, "low")
	look(10, "")
	look(110, "") // not enough better
	look(99, "")
	look(125, "over")
	look(99, "low")
	set("50")
	look(49, "low") // told again: it is another threshold
	set("off")
	look(0, "")
}

func TestMeasure(t *testing.T) {
	if _, ok := statfs("/dev/null"); ok {
		t.Error("a device can fill up")
	}
	if _, ok := statfs("/nothing/there"); ok {
		t.Error("a file that is not there was measured")
	}
	r, ok := statfs("/proc/self/exe")
	if !ok || r.total <= 0 || r.free < 0 || r.free > r.total || r.total == math.MaxInt64 {
		t.Errorf("%+v, %v", r, ok)
	}
}
