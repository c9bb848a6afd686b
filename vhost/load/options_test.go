package load

import (
	"testing"
	"time"

	"cowblk/internal/test"
)

func TestOptions(t *testing.T) {
	good := Options{Socket: "s"}
	o, err := good.withDefaults()
	if err != nil || o.RW != RandRead || o.BlockSize != 4096 || o.QueueDepth != 1 ||
		o.Queues != 1 || o.Duration != 5*time.Second || o.Writes() {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = (Options{Null: true, RW: Write, FirstWrite: true}).withDefaults(); err != nil ||
		o.Duration != 0 || !o.Writes() {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = (Options{Null: true, RW: RandRW}).withDefaults(); err != nil ||
		o.ReadPercent != 50 {
		t.Errorf("%+v, %v", o, err)
	}
	for name, o := range map[string]Options{
		"nothing to load":     {},
		"two things":          {Socket: "s", Null: true},
		"pattern":             {Socket: "s", RW: "readwrite"},
		"mix":                 {Socket: "s", RW: RandRW, ReadPercent: 100},
		"mix of reads":        {Socket: "s", ReadPercent: 50},
		"block size":          {Socket: "s", BlockSize: 1000},
		"negative block":      {Socket: "s", BlockSize: -512},
		"huge block":          {Socket: "s", BlockSize: 1 << 30},
		"depth":               {Socket: "s", QueueDepth: 400},
		"queues":              {Socket: "s", Queues: -1},
		"time":                {Socket: "s", Duration: -1},
		"warm-up":             {Socket: "s", Warmup: -1},
		"size":                {Socket: "s", Size: -1},
		"offset":              {Socket: "s", Offset: 100},
		"flushes of reads":    {Socket: "s", FsyncEvery: 1},
		"negative flushes":    {Socket: "s", RW: Write, FsyncEvery: -1},
		"first writes, reads": {Socket: "s", FirstWrite: true},
		"first writes, mixed": {Socket: "s", FirstWrite: true, RW: RandRW},
	} {
		test.ErrorIs(t, test.Err(o.withDefaults()), ErrOptions, name)
	}
}
