//go:build linux

package runtime

const agentEnv = "GANTRY_TEST_AGENT"

func agentMain(string) int { return 0 }
