//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/bench/ways"
)

// profiled begins, where profiles are wanted and the way goes through the edge, a
// CPU profile of the edge. The returned function waits for it.
func (b *bench) profiled(ctx context.Context, setup *ways.Setup, section, name string, w *ways.Way) (stop func()) {
	if b.profile == "" || w.HTTP == nil || len(w.Edge) == 0 {
		return func() {}
	}
	done := make(chan error, 1)
	go func() { done <- b.takeProfile(ctx, setup, section+" "+name+" "+w.Name) }()
	return func() {
		if err := <-done; err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}
}

func (b *bench) takeProfile(ctx context.Context, setup *ways.Setup, name string) error {
	edge, err := setup.Edge(ctx)
	if err != nil {
		return err
	}
	time.Sleep(b.windowOf(&ways.Way{}).Warm)
	text, err := edge.Get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(b.window.Seconds()))))
	if err != nil {
		return err
	}
	file := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, name)
	return os.WriteFile(filepath.Join(b.profile, file+".pprof"), text, 0o644)
}
