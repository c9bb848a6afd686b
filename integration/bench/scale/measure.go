package scale

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cost holds the cost of one command at each size.
type cost struct{ calls, times []float64 }

// measure prints the table of one axis.
func measure(ctx context.Context, s *settings, a *axis) error {
	costs := map[string]*cost{} // by build and command
	var names []string
	for _, b := range s.builds {
		for _, size := range a.sizes {
			order, err := measureStore(ctx, s, a, b, size, costs)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", b.name, a.text(size), err)
			}
			names = order
		}
	}
	var heads []string
	for _, size := range a.sizes {
		heads = append(heads, a.text(size))
	}
	fmt.Printf("\n%s: %s\n\n", a.name, strings.Join(heads, " / "))
	fmt.Println("| command | build | calls | e | ms | e |")
	fmt.Println("|---|---|--:|--:|--:|--:|")
	for _, name := range names {
		for _, b := range s.builds {
			c := costs[b.name+name]
			fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", name, b.name,
				list(c.calls, 0), exponent(a.sizes, c.calls), list(c.times, 1),
				exponent(a.sizes, c.times))
		}
	}
	return nil
}

// measureStore makes a store of one size and measures all commands in it.
func measureStore(ctx context.Context, s *settings, a *axis, b build, size int64,
	costs map[string]*cost) (names []string, err error) {
	dir, err := os.MkdirTemp(s.dir, "store-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := &client{ctx: ctx, binary: b.binary, store: filepath.Join(dir, "store")}
	if err := a.make(c, size); err != nil {
		return nil, err
	}
	// A first pass makes the checks that are done once after a start of the system. The index of
	// manifests takes a disk that has not changed for three seconds.
	time.Sleep(4 * time.Second)
	for _, st := range c.steps() {
		if err := c.run(st.args...); err != nil {
			return nil, err
		}
	}
	times := map[string][]float64{}
	for round := range s.rounds + 1 {
		for _, st := range c.steps() {
			key := b.name + st.name
			if round > 0 {
				ms, err := c.time(st.args...)
				if err != nil {
					return nil, err
				}
				times[key] = append(times[key], ms)
				continue
			}
			names = append(names, st.name)
			calls, err := c.calls(st.args...)
			if err != nil {
				return nil, err
			}
			if costs[key] == nil {
				costs[key] = &cost{}
			}
			costs[key].calls = append(costs[key].calls, calls)
		}
	}
	for _, name := range names {
		all := slices.Sorted(slices.Values(times[b.name+name]))
		median := math.NaN()
		if len(all) > 0 {
			median = all[len(all)/2]
		}
		costs[b.name+name].times = append(costs[b.name+name].times, median)
	}
	return names, nil
}

// exponent returns e of cost ~ size^e, between the first and the last size.
func exponent(sizes []int64, costs []float64) string {
	last := len(sizes) - 1
	if last == 0 {
		return "-"
	}
	e := math.Log(costs[last]/costs[0]) / math.Log(float64(sizes[last])/float64(sizes[0]))
	return strconv.FormatFloat(e, 'f', 2, 64)
}

func list(v []float64, digits int) string {
	var words []string
	for _, x := range v {
		words = append(words, strconv.FormatFloat(x, 'f', digits, 64))
	}
	return strings.Join(words, " / ")
}

func plain(n int64) string { return strconv.FormatInt(n, 10) }

func sizeText(bytes int64) string {
	if bytes >= tib {
		return fmt.Sprintf("%d TiB", bytes/tib)
	}
	return fmt.Sprintf("%d GiB", bytes/gib)
}
