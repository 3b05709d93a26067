// Prints the Khronos validator's counts and messages for the files named on the command line, one JSON line each.
const fs = require('fs')
const validator = require(require.resolve('gltf-validator', { paths: [process.env.VALIDATOR_ROOT] }))

async function main () {
  for (const file of process.argv.slice(2)) {
    const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), { format: 'glb' })
    console.log(JSON.stringify(report.issues))
  }
}

main()
