// Package fences holds the rules of the house that a test can check: who may
// import whom, what the agent must not link, and where a few things may be said
// at all. It has no code of its own.
package fences
