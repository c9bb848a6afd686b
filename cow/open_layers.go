package cow

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
)

// openLayers opens the layers, each of which must lie on the one before it. The disk has the size
// of its top layer: a disk may have grown since lower layers were made, never shrunk.
//
// Each map is read and checked as a whole, which takes most of the time of opening a large disk:
// all layers but the head are opened in parallel, on all processors. The head comes last because
// opening changes it.
func (k *stack) openLayers(s Spec) error {
	last := len(s.Layers) - 1
	headers := make([]layer.Header, len(s.Layers))
	for i, p := range s.Layers {
		var err error
		if headers[i], err = layer.ReadHeader(k.fs, p.Map); err != nil {
			return err
		}
	}
	top := headers[last]
	k.size, k.blockSize = top.Size, int64(top.BlockSize)

	opened := make([]*layer.Layer, len(s.Layers))
	open := func(i int) (err error) {
		var parent uuid.UUID // zero below the first layer
		if i > 0 {
			parent = headers[i-1].UUID
		}
		expect := layer.Expect{UUID: headers[i].UUID, Size: headers[i].Size, Parent: &parent,
			BlockSize: top.BlockSize, Base: &k.baseSum, BaseSize: &k.baseSize}
		params := layer.OpenParams{Expect: expect, Unflushed: k.unflushed}
		if i == last && !s.ReadOnly {
			params.Write, params.SharedDir = true, k.sharedDir
		}
		opened[i], err = layer.Open(k.fs, s.Layers[i], params)
		if errors.Is(err, layer.ErrNoShared) {
			k.log.Warn("no shared map: writes of new blocks complete only when they are durable, which is slow", "err", err)
			params.SharedDir = ""
			opened[i], err = layer.Open(k.fs, s.Layers[i], params)
		}
		if err == nil {
			k.logUnflushed(opened[i], s.ReadOnly)
		}
		return err
	}
	err := checkSizes(s.Layers, headers)
	if err == nil {
		err = onAllProcessors(last, open)
	}
	if err == nil {
		err = open(last)
	}
	for _, l := range opened {
		if l != nil {
			k.layers = append(k.layers, l)
		}
	}
	return err
}

// logUnflushed logs what has become of the unflushed writes of a process that died.
func (k *stack) logUnflushed(l *layer.Layer, readOnly bool) {
	recovered, dropped := l.Unflushed()
	const lost = "unflushed writes of a killed process are lost: the disk is as after a power cut"
	switch {
	case readOnly && errors.Is(dropped, layer.ErrDropRequested):
		k.log.Info("unflushed writes of a killed process are not read, as requested (--drop-unflushed): they stay, and a later open without that option reads them", "map", l.Paths().Map)
	case errors.Is(dropped, layer.ErrRestarted):
		k.log.Info(lost, "map", l.Paths().Map, "err", dropped)
	case errors.Is(dropped, layer.ErrWriteBack):
		k.log.Error(lost, "map", l.Paths().Map, "err", dropped)
	case dropped != nil:
		k.log.Warn(lost, "map", l.Paths().Map, "err", dropped)
	case recovered > 0 && readOnly:
		k.log.Info("unflushed writes of a killed process are read from its shared map and are not durable yet", "map", l.Paths().Map, "blocks", recovered)
	case recovered > 0:
		k.log.Info("recovered the unflushed writes of a killed process", "map", l.Paths().Map,
			"blocks", recovered)
	}
}

// checkSizes checks that no layer is larger than a layer above it.
func checkSizes(paths []layer.Paths, headers []layer.Header) error {
	top := headers[len(headers)-1]
	var size int64
	for i, h := range headers {
		if h.Size < size || h.Size > top.Size {
			return finding.New(layer.ErrMismatch, paths[i].Map, "size of the disk in bytes",
				fmt.Sprintf("%d to %d, as of the layers below and on top", size, top.Size), h.Size,
				"check that the disk's manifest names the right files")
		}
		size = h.Size
	}
	return nil
}

// onAllProcessors calls f with 0 to n-1 in parallel and returns the error of the lowest number.
// After an error no further call begins.
func onAllProcessors(n int, f func(int) error) error {
	errs := make([]error, n)
	var next atomic.Int64
	var failed atomic.Bool
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !failed.Load(); i = int(next.Add(1)) - 1 {
				if errs[i] = f(i); errs[i] != nil {
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
