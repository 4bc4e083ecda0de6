package caddymodule

import (
	"slices"
	"sync"
)

// current is the apps that run, the newest last. The admin API is provisioned
// before any app, and may outlive the configuration that it came with: it asks
// here, per request.
var current appStack

type appStack struct {
	mu   sync.Mutex // guards apps
	apps []*App
}

func (s *appStack) push(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apps = append(s.apps, a)
}

func (s *appStack) remove(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apps = slices.DeleteFunc(s.apps, func(one *App) bool { return one == a })
}

// top returns the app in force; nil without one.
func (s *appStack) top() *App {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.apps) == 0 {
		return nil
	}
	return s.apps[len(s.apps)-1]
}
