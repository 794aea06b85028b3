// node duckdb.js FOLDER SQL: what `duckdb -c SQL` does, with the package installed in FOLDER.
const { DuckDBInstance } = require(process.argv[2] + '/node_modules/@duckdb/node-api');

async function main() {
  const instance = await DuckDBInstance.create(':memory:');
  const connection = await instance.connect();
  await connection.run(process.argv[3]);
  process.exit(0);
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
