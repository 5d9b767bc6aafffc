-- Renews each of KEYS that still has its token. ARGV: lease in ms, then one token per key.
-- Answers per key: 1 renewed, 0 lost. pcall: a key of another type belongs to somebody else and fails nobody's batch.
local answers = {}
for i, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == ARGV[i + 1] then
    answers[i] = redis.call('PEXPIRE', key, ARGV[1])
  else
    answers[i] = 0
  end
end
return answers
