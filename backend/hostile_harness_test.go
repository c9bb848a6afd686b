package backend

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// How long the generated runs of the hostile fuzzers take: COWBLK_FUZZ_SECONDS seconds, by default
// 60, or until COWBLK_FUZZ_EXECS inputs have been tried, whichever comes last. COWBLK_FUZZ_SEED
// repeats a run.
func fuzzLimits(t *testing.T) (d time.Duration, execs int, seed uint64) {
	number := func(name string, missing uint64) uint64 {
		s := os.Getenv(name)
		if s == "" {
			return missing
		}
		n, err := strconv.ParseUint(s, 0, 64)
		test.Must(t, err, name)
		return n
	}
	d = time.Duration(number("COWBLK_FUZZ_SECONDS", 60)) * time.Second
	return d, int(number("COWBLK_FUZZ_EXECS", 0)), number("COWBLK_FUZZ_SEED", rand.Uint64())
}

// input takes what decides an execution from the fuzzer's bytes; what is missing is zero.
type input struct{ b []byte }

func (in *input) byte() byte {
	if len(in.b) == 0 {
		return 0
	}
	v := in.b[0]
	in.b = in.b[1:]
	return v
}

func (in *input) n(limit int) int { return int(in.byte()) % limit }
func (in *input) u16() uint16     { return uint16(in.byte()) | uint16(in.byte())<<8 }
func (in *input) u32() uint32     { return uint32(in.u16()) | uint32(in.u16())<<16 }
func (in *input) u64() uint64     { return uint64(in.u32()) | uint64(in.u32())<<32 }
func (in *input) one(of int) bool { return in.n(of) == of-1 }

// odd is a number that likes to be at an edge; zero bytes give the first.
func (in *input) odd() uint64 {
	edges := [...]uint64{0, 1, 2, 3, 15, 16, 17, 127, 128, 255, 256, 511, 512, 513, 1024, 4095,
		4096, 4097, 1 << 15, 1<<16 - 1, 1 << 16,
		atkBase, atkBorder - 1, atkBorder, atkEnd - 1, atkEnd, 1 << 20, 1<<31 - 1, 1 << 31,
		1<<32 - 16, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 4096, 1<<64 - 1}
	switch k := in.byte(); {
	case int(k) < len(edges):
		return edges[k]
	case k < 128:
		return uint64(k)
	case k < 192:
		return uint64(in.u16())
	case k < 224:
		return uint64(in.u32())
	default:
		return in.u64()
	}
}

// openFiles lists what the process's descriptors are, sorted by the kernel.
func openFiles(t testing.TB) []string {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	test.Must(t, err)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	test.Must(t, err)
	var out []string
	for _, n := range names {
		if to, err := os.Readlink("/proc/self/fd/" + n); err == nil && !strings.HasSuffix(to,
			"/fd") {
			// A queue makes its I/O engine when it first needs one.
			if to != "anon_inode:[io_uring]" {
				out = append(out, n+" "+to)
			}
		}
	}
	return out
}

// sameFiles fails the test if other descriptors are open than before.
func sameFiles(t testing.TB, before []string) {
	t.Helper()
	if now := openFiles(t); len(now) != len(before) {
		t.Errorf("%d descriptors are open, expected %d:\n%s\nbefore:\n%s", len(now), len(before),
			strings.Join(now, "\n"), strings.Join(before, "\n"))
	}
}

// goroutines counts those whose stacks contain what.
func goroutines(what string) int {
	var b bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
	return strings.Count(b.String(), what)
}

// underWay keeps the input of the present execution in a file, which outlives a process that dies
// of it.
type underWay struct {
	mem  []byte
	path string
}

// In TMPDIR, cowblk-TEST-PROCESS-LANE.input: four bytes of length, then the input.
func newUnderWay(t *testing.T, lane int) *underWay {
	t.Helper()
	u := &underWay{path: filepath.Join(os.TempDir(), fmt.Sprintf("cowblk-%s-%d-%d.input",
		strings.ReplaceAll(t.Name(), "/", "-"), os.Getpid(), lane))}
	f, err := os.Create(u.path)
	test.Must(t, err)
	defer f.Close()
	test.Must(t, f.Truncate(8<<10))
	u.mem, err = unix.Mmap(int(f.Fd()), 0, 8<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	test.Must(t, err)
	t.Cleanup(func() {
		test.Must(t, unix.Munmap(u.mem))
		os.Remove(u.path)
	})
	return u
}

func (u *underWay) set(in []byte) {
	binary.LittleEndian.PutUint32(u.mem, uint32(len(in)))
	copy(u.mem[4:], in)
}

// lanes is how many attackers there are at once: most of an execution is waiting for a thread to
// wake.
const lanes = 4

// generate runs bodies, each in a goroutine of its own, on generated inputs: seeds and what is made
// of them. A body fails the test by t; the input that did is saved as one of fuzz's, for go test
// -run 'fuzz/name'. Every so many executions all stand still and between is called.
func generate(t *testing.T, fuzz string, seeds [][]byte, bodies []func(in []byte), between func()) {
	d, execs, seed := fuzzLimits(t)
	seeds = corpus(t, fuzz, seeds)
	fmt.Printf("%s: COWBLK_FUZZ_SEED=%#x\n", t.Name(), seed)
	var rs []*rand.Rand
	var us []*underWay
	for i := range bodies {
		rs = append(rs, rand.New(rand.NewPCG(seed, uint64(i))))
		us = append(us, newUnderWay(t, i))
	}
	const round = 64
	start := time.Now()
	done := 0
	for ; (time.Since(start) < d || done < execs) && !t.Failed(); done += round * len(bodies) {
		var wg sync.WaitGroup
		for i, body := range bodies {
			wg.Go(func() {
				var in []byte
				ok := false
				defer func() {
					if !ok {
						t.Errorf("saved as %s", save(t, fuzz, in))
					}
				}()
				for range round {
					in = mutate(rs[i], seeds)
					us[i].set(in)
					if body(in); t.Failed() {
						return
					}
				}
				ok = true
			})
		}
		wg.Wait()
		between()
		if took := time.Since(start); done%(1000*round*len(bodies)) == 0 && done > 0 {
			fmt.Printf("%s: %d executions so far, in %v\n", t.Name(), done, took.Round(time.Second))
		}
	}
	took := time.Since(start)
	fmt.Printf("%s: %d executions in %v, %.0f a second\n", t.Name(), done, took.Round(time.Second),
		float64(done)/took.Seconds())
}

// corpus adds the inputs that are kept for a fuzz test to its seeds.
func corpus(t testing.TB, fuzz string, seeds [][]byte) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "fuzz", fuzz, "*"))
	test.Must(t, err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		test.Must(t, err)
		text, _ := strings.CutPrefix(string(b), "go test fuzz v1\n[]byte(")
		in, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(text), ")"))
		test.Must(t, err, name)
		seeds = append(seeds, []byte(in))
	}
	return seeds
}

// mutate makes an input of at most 512 bytes: a seed or two, cut and joined, with some bytes
// changed, or noise.
func mutate(r *rand.Rand, seeds [][]byte) []byte {
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	if len(seeds) == 0 || r.IntN(8) == 0 {
		return noise(r.IntN(200))
	}
	in := bytes.Clone(seeds[r.IntN(len(seeds))])
	if r.IntN(4) == 0 {
		other := seeds[r.IntN(len(seeds))]
		in = append(in[:r.IntN(len(in)+1)], other[r.IntN(len(other)+1):]...)
	}
	for range r.IntN(6) {
		if len(in) == 0 {
			break
		}
		at := r.IntN(len(in))
		switch r.IntN(5) {
		case 0:
			in = append(in[:at], in[at+1:]...)
		case 1:
			in = append(in[:at], append(noise(1+r.IntN(8)), in[at:]...)...)
		case 2:
			in[at] ^= 1 << r.IntN(8)
		default:
			in[at] = byte(r.Uint32())
		}
	}
	return in[:min(len(in), 512)]
}

// save writes an input where the fuzz test of that name finds it.
func save(t *testing.T, fuzz string, in []byte) string {
	dir := filepath.Join("testdata", "fuzz", fuzz)
	test.Must(t, os.MkdirAll(dir, 0o755))
	name := filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(in))[:16])
	test.Must(t, os.WriteFile(filepath.Join(dir, filepath.Base(name)),
		fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", in), 0o644))
	return name
}

// dropGarbage lets goroutines end that have nothing left to do.
func dropGarbage() {
	runtime.Gosched()
	time.Sleep(time.Millisecond)
}
