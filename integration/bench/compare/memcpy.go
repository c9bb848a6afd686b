package compare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/integration/bench/compare/report"
)

// mapping returns the base image mapped into memory, with every page present.
func (s *site) mapping() ([]byte, error) {
	if s.mapped != nil {
		return s.mapped, nil
	}
	f, err := os.Open(s.base())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, int(s.size), unix.PROT_READ,
		unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", s.base(), err)
	}
	s.mapped = m
	s.closers = append(s.closers, func() error { return unix.Munmap(m) })
	return m, nil
}

// copySequential copies the base in order, 128 KiB at a time, to eight buffers in turn: the copies
// of a sequential read and nothing else.
func (s *site) copySequential(context.Context, int) (report.Sample, error) {
	m, err := s.mapping()
	if err != nil {
		return report.Sample{}, err
	}
	const size = 128 << 10
	to, i := make([]byte, 8*size), 0
	return copies(s.time, size, func() {
		copy(to[i%8*size:][:size], m[i*size%len(m):])
		i++
	}), nil
}

// copyRandom copies random blocks of 4 KiB to 32 buffers in turn.
func (s *site) copyRandom(_ context.Context, round int) (report.Sample, error) {
	m, err := s.mapping()
	if err != nil {
		return report.Sample{}, err
	}
	const size = 4 << 10
	source := rand.New(rand.NewPCG(uint64(round), 3))
	to, i := make([]byte, 32*size), 0
	return copies(s.time, size, func() {
		copy(to[i%32*size:][:size], m[source.IntN(len(m)/size)*size:])
		i++
	}), nil
}

// copies repeats one, a copy of size bytes, until limit.
func copies(limit time.Duration, size int, one func()) report.Sample {
	n, start := 0, time.Now()
	for time.Since(start) < limit {
		for range 16 {
			one()
		}
		n += 16
	}
	each := float64(time.Since(start)) / float64(n)
	return report.Sample{
		Requests: uint64(n), IOPS: 1e9 / each, Bytes: 1e9 / each * float64(size), Server: each,
		Latency: report.Latencies{Mean: each, P50: each, P90: each, P99: each, P999: each,
			Max: each},
	}
}
